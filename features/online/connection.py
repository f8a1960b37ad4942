"""A connection to the online store whose every failure is a `StoreDown` that says the fix.

Knows redis-py and Lua scripts. Does not know rows.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.store import StoreDown

RECEIVE_BYTES = 1 << 16  # the memory of longer pieces is mapped anew for each: thrice the CPU
PIECES_AT_ONCE = 256  # systems take 1024 at most


class Connection:
    """One Redis or Valkey database. Safe for threads; reconnects by itself.

    `timeout_s` bounds connecting and each answer.
    """

    def __init__(self, address: str, db: int, timeout_s: float) -> None:
        self.address, self.db = address, db
        host, _, port = address.rpartition(":")
        self.client: Any = redis.Redis(
            host=host,
            port=int(port),
            db=db,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # One immediate second try: a pooled connection may have died while idle.
            retry=Retry(NoBackoff(), 1),
        )

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turns what redis-py raises into `StoreDown`."""
        try:
            yield
        except (redis.exceptions.ResponseError, redis.exceptions.DataError):
            raise  # the store answered: a defect of ours, not an absence
        except (redis.exceptions.RedisError, OSError) as error:
            raise StoreDown(
                f"the online store at {self.address} (db {self.db}) does not answer: {error}. "
                "Look at `tidemill status`, or set TIDEMILL_STORE__ADDRESS."
            ) from error

    def exchange(self, packed: Sequence[bytes | memoryview], replies: int) -> list[Any]:
        """Sends packed commands, then reads their replies; a second time on a dead connection.

        Each piece has `timeout_s` to be taken, and each part of an answer to come. Reads
        past redis-py, whose own way costs three microseconds a reply. An error that the
        server answers is raised when all replies are read, the first of them.
        """
        with self.failures():
            try:
                found = self._exchange(packed, replies)
            except redis.exceptions.ConnectionError:
                found = self._exchange(packed, replies)  # the pooled connection had died
            wrong = next((r for r in found if isinstance(r, Exception)), None)
            if wrong is not None:
                raise _named(wrong)
        return found

    def _exchange(self, packed: Sequence[bytes | memoryview], replies: int) -> list[Any]:
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            _send(connection._sock, packed)
            return _replies(connection._sock, replies)
        except BaseException:
            connection.disconnect()  # unread replies must not answer the next command
            raise
        finally:
            pool.release(connection)

    def dedicated(self) -> DedicatedConnection:
        return DedicatedConnection(self.client.connection_pool)

    def ping(self) -> bool:
        try:
            with self.failures():
                return bool(self.client.ping())
        except StoreDown:
            return False


class DedicatedConnection:
    """One connection kept open, so that what the server remembers of it (`WATCH`) holds from
    one exchange to the next. It never connects again by itself. Not safe for threads."""

    def __init__(self, pool: Any) -> None:
        self._pool, self._connection = pool, pool.get_connection()

    def exchange(
        self, packed: Sequence[bytes | memoryview], known: bytes, replies: int
    ) -> list[Any] | None:
        """The replies behind the `known` ones, with which the answer begins where all goes well.
        None: the connection broke before the end. That, and every error, closes it."""
        sock = self._connection._sock
        try:
            _send(sock, packed)
            return _replies_behind(sock, known, replies)
        except redis.exceptions.ConnectionError:
            self._close()
            return None
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        self._connection.disconnect()
        self._pool.release(self._connection)


class Call(NamedTuple):
    """A script's keys and arguments, packed: each a RESP bulk string (`bulk`)."""

    keys: int
    words: int  # keys and arguments together
    first: bytes  # some of them
    rest: memoryview  # the others, which are long: they are sent as they lie

    def pieces(self, sha: str) -> tuple[bytes, memoryview]:
        """The whole command."""
        words = map(bulk, (b"EVALSHA", sha.encode(), b"%d" % self.keys))
        return b"".join((b"*%d\r\n" % (self.words + 3), *words, self.first)), self.rest


class Script:
    """A Lua script by its hash, sent whole when the server has forgotten it."""

    def __init__(self, connection: Connection, source: str) -> None:
        self._connection, self._source = connection, source
        self._sha = ""

    def __call__(self, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> Any:
        client = self._connection.client
        with self._connection.failures():
            try:
                return client.evalsha(self._digest(), len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                return client.eval(self._source, len(keys), *keys, *arguments)

    def many(self, calls: Sequence[Call]) -> list[Any]:
        """The calls one after another without waiting in between; a reply for each."""
        for _ in range(2):
            sha = self._digest()
            packed = [piece for call in calls for piece in call.pieces(sha)]
            try:
                return self._connection.exchange(packed, len(calls))
            except redis.exceptions.NoScriptError:
                self._sha = ""  # forgotten; the script must bear a call that runs a second time
        raise StoreDown(f"the online store at {self._connection.address} keeps no scripts")

    def _digest(self) -> str:
        if not self._sha:
            with self._connection.failures():
                self._sha = self._connection.client.script_load(self._source)
        return self._sha


def hget(key: bytes, field: bytes) -> bytes:
    """An HGET, packed."""
    return b"*3\r\n$4\r\nHGET\r\n%b%b" % (bulk(key), bulk(field))


def bulk(word: bytes) -> bytes:
    """A RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _send(sock: Any, pieces: Sequence[bytes | memoryview]) -> None:
    """Sends all pieces as they lie, in few calls of the system."""
    left = deque(memoryview(piece) for piece in pieces if len(piece))
    while left:
        try:
            sent = sock.sendmsg(list(islice(left, PIECES_AT_ONCE)))
        except TimeoutError as error:
            raise redis.exceptions.TimeoutError("not taken in time") from error
        except OSError as error:
            raise redis.exceptions.ConnectionError("the connection was closed") from error
        while left and sent >= len(left[0]):
            sent -= len(left.popleft())
        if sent:
            left[0] = left[0][sent:]


_MORE = object()  # what the reader gives while a reply is not whole


def _replies(sock: Any, count: int, begun: bytes = b"") -> list[Any]:
    """`begun`: what was received of them already."""
    reader = hiredis.Reader(notEnoughData=_MORE)
    found: list[Any] = []
    reader.feed(begun)
    while True:
        while len(found) < count and (reply := reader.gets()) is not _MORE:
            found.append(reply)
        if len(found) == count:
            return found
        reader.feed(_received(sock))


def _replies_behind(sock: Any, known: bytes, count: int) -> list[Any]:
    """Any error among the replies is raised, the first of them. To wake for each piece of the known
    replies, and to parse them, costs more than to send what they answer."""
    # No reply is shorter than a nil, nor an error than the known reply that it stands for.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(known) + count * len(b"$-1\r\n"))
    data = _received(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    while len(data) < len(known):
        data += _received(sock)
    right = data.startswith(known)
    begun, more = (data[len(known) :], 0) if right else (data, known.count(b"\r\n"))
    replies = _replies(sock, more + count, begun)
    each = [*replies, *(r for reply in replies if isinstance(reply, list) for r in set(reply))]
    wrong = next((reply for reply in each if isinstance(reply, Exception)), None)
    if wrong is not None or not right:
        raise _named(wrong or ValueError("the server answers what it was not asked"))
    return replies


def _received(sock: Any) -> bytes:
    try:
        data: bytes = sock.recv(RECEIVE_BYTES)
    except TimeoutError as error:
        raise redis.exceptions.TimeoutError("no answer in time") from error
    except OSError as error:
        raise redis.exceptions.ConnectionError("the connection was closed") from error
    if not data:
        raise redis.exceptions.ConnectionError("the connection was closed")
    return data


def _named(error: Exception) -> Exception:
    """The server's error as redis-py's exception."""
    if str(error).startswith("NOSCRIPT"):
        return redis.exceptions.NoScriptError(str(error))
    return redis.exceptions.ResponseError(str(error))
