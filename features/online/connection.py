"""Connections to the online store; every failure is a `StoreDown` that names the fix.

Knows redis-py and Lua scripts. Does not know rows.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from features.store import StoreDown

RECEIVE_BYTES = 1 << 16  # larger buffers are mapped anew for each call: three times the CPU
PIECES_PER_SEND = 256  # systems accept 1024 at most


@dataclass(frozen=True)
class StoreLogin:
    """One client's identity; files are PEM.

    `sentinels`: "host:port,host:port"; they are asked for the address of `sentinel_service`, also
    after it has moved.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)
    sentinels: str = ""
    sentinel_service: str = "mymaster"

    def options(self) -> dict[str, Any]:
        """redis-py's arguments."""
        given = {
            "username": self.username,
            "password": self.password,
            "ssl": self.tls,
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.certificate_file,
            "ssl_keyfile": self.key_file,
            "ssl_password": self.key_password,
        }
        return {name: value for name, value in given.items() if value}

    def sentinel_addresses(self) -> list[tuple[str, int]]:
        split = (each.rpartition(":") for each in self.sentinels.split(",") if each)
        return [(host.strip("[]"), int(port)) for host, _, port in split]

    def feast_settings(self, address: str, db: int) -> dict[str, str]:
        """The same for Feast's Redis store, whose parser splits at commas and reads JSON."""
        options = self.options() | {"db": db}
        texts = {name: json.dumps(value).replace(",", "\\u002c") for name, value in options.items()}
        parts = [self.sentinels or address, *(f"{name}={text}" for name, text in texts.items())]
        found = {"connection_string": ",".join(parts)}
        if self.sentinels:
            found |= {"redis_type": "redis_sentinel", "sentinel_master": self.sentinel_service}
        return found


OPEN = StoreLogin()


class StoreRefused(StoreDown):
    """The store refuses this client's login; to try again changes nothing."""


class Connection:
    """One Redis or Valkey database. Safe for threads; reconnects on its own.

    `timeout_s` bounds connecting and each reply.
    """

    def __init__(self, address: str, db: int, timeout_s: float, login: StoreLogin = OPEN) -> None:
        self.address, self.db, self.login = address or login.sentinels, db, login
        options = login.options() | {
            "db": db,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            # One immediate retry: a pooled connection may have died while idle.
            "retry": Retry(NoBackoff(), 1),
        }
        self.client: Any = _client(address, login, options)

    @contextmanager
    def errors_as_store_down(self) -> Iterator[None]:
        """Turns what redis-py raises into `StoreDown`."""
        try:
            yield
        except redis.exceptions.AuthenticationError as error:
            raise StoreRefused(
                f"the online store at {self.address} refuses the login ({error}): correct "
                "store.security: username, password (or password_file)"
            ) from None
        except redis.exceptions.NoPermissionError as error:
            raise StoreRefused(
                f"the online store at {self.address} forbids its user a command ({error}): "
                "allow it ~* +@all, or choose another user in store.security"
            ) from None
        except (redis.exceptions.ResponseError, redis.exceptions.DataError):
            raise  # the store answered: a bug here, not an outage
        except (redis.exceptions.RedisError, OSError) as error:
            raise StoreDown(
                f"the online store at {self.address} (db {self.db}) does not answer: {error}. "
                "Look at `tidemill status`, or set TIDEMILL_STORE__ADDRESS."
            ) from error

    def exchange(self, packed: Sequence[bytes | memoryview], replies: int) -> list[Any]:
        """Sends packed commands and reads so many replies; retries once on a dead connection.

        `timeout_s` bounds each send and each receive. Replies are parsed without redis-py,
        which costs 3 µs a reply. Of the errors among the replies, the first is raised once all
        replies are read.
        """
        with self.errors_as_store_down():
            try:
                found = self._exchange(packed, replies)
            except redis.exceptions.ConnectionError:
                found = self._exchange(packed, replies)  # the pooled connection was dead
            wrong = next((r for r in found if isinstance(r, Exception)), None)
            if wrong is not None:
                raise _redis_error(wrong)
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
            with self.errors_as_store_down():
                return bool(self.client.ping())
        except StoreDown:
            return False


def _client(address: str, login: StoreLogin, options: dict[str, Any]) -> Any:
    if login.sentinels:
        timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
        untyped: Any = Sentinel
        sentinel = untyped(login.sentinel_addresses(), sentinel_kwargs=timeouts)
        return sentinel.master_for(login.sentinel_service, **options)
    host, _, port = address.rpartition(":")
    return redis.Redis(host=host.strip("[]"), port=int(port), **options)


class DedicatedConnection:
    """One connection kept open, so that the server's state for it (`WATCH`) lasts from one
    exchange to the next. Never reconnects. Not safe for threads."""

    def __init__(self, pool: Any) -> None:
        self._pool, self._connection = pool, pool.get_connection()

    def exchange(
        self, packed: Sequence[bytes | memoryview], expected: bytes, replies: int
    ) -> list[Any] | None:
        """The `replies` that follow the `expected` bytes, with which a good answer starts.

        None: the connection broke before the end. That and every error close the connection.
        """
        sock = self._connection._sock
        try:
            _send(sock, packed)
            return _replies_after(sock, expected, replies)
        except redis.exceptions.ConnectionError:
            self._close()
            return None
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        self._connection.disconnect()
        self._pool.release(self._connection)


class ScriptCall(NamedTuple):
    """A script's keys and arguments, packed: each a RESP bulk string (`bulk_string`)."""

    keys: int
    words: int  # keys and arguments together
    first: bytes  # the short ones
    rest: memoryview  # the long ones, sent without a copy

    def pieces(self, sha: str) -> tuple[bytes, memoryview]:
        """The whole command."""
        words = map(bulk_string, (b"EVALSHA", sha.encode(), b"%d" % self.keys))
        return b"".join((b"*%d\r\n" % (self.words + 3), *words, self.first)), self.rest


class Script:
    """A Lua script called by its hash; loaded again when the server has lost it."""

    def __init__(self, connection: Connection, source: str) -> None:
        self._connection, self._source = connection, source
        self._sha = ""

    def __call__(self, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> Any:
        client = self._connection.client
        with self._connection.errors_as_store_down():
            try:
                return client.evalsha(self._digest(), len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                return client.eval(self._source, len(keys), *keys, *arguments)

    def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """The calls in one pipeline; a reply for each.

        The script must tolerate a call that runs twice.
        """
        for _ in range(2):
            sha = self._digest()
            packed = [piece for call in calls for piece in call.pieces(sha)]
            try:
                return self._connection.exchange(packed, len(calls))
            except redis.exceptions.NoScriptError:
                self._sha = ""  # the server lost the script
        raise StoreDown(f"the online store at {self._connection.address} does not keep scripts")

    def _digest(self) -> str:
        if not self._sha:
            with self._connection.errors_as_store_down():
                self._sha = self._connection.client.script_load(self._source)
        return self._sha


def pack_hget(key: bytes, field: bytes) -> bytes:
    """A packed HGET."""
    return b"*3\r\n$4\r\nHGET\r\n%b%b" % (bulk_string(key), bulk_string(field))


def bulk_string(word: bytes) -> bytes:
    """A RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _send(sock: Any, pieces: Sequence[bytes | memoryview]) -> None:
    """Sends all pieces without copying them, in few system calls."""
    left = deque(memoryview(piece) for piece in pieces if len(piece))
    if isinstance(sock, ssl.SSLSocket):  # it has no sendmsg
        left = deque([memoryview(b"".join(left))] if left else [])
    while left:
        try:
            sent = _send_some(sock, left)
        except TimeoutError as error:
            raise redis.exceptions.TimeoutError("send timed out") from error
        except OSError as error:
            raise redis.exceptions.ConnectionError("the connection was closed") from error
        while left and sent >= len(left[0]):
            sent -= len(left.popleft())
        if sent:
            left[0] = left[0][sent:]


def _send_some(sock: Any, left: deque[memoryview]) -> int:
    if isinstance(sock, ssl.SSLSocket):
        return sock.send(left[0])
    return int(sock.sendmsg(list(islice(left, PIECES_PER_SEND))))


_INCOMPLETE = object()  # hiredis returns it while a reply is not complete


def _replies(sock: Any, count: int, received: bytes = b"") -> list[Any]:
    """The next `count` replies, of which `received` has been read from the socket."""
    reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
    found: list[Any] = []
    reader.feed(received)
    while True:
        while len(found) < count and (reply := reader.gets()) is not _INCOMPLETE:
            found.append(reply)
        if len(found) == count:
            return found
        reader.feed(_receive(sock))


def _replies_after(sock: Any, expected: bytes, count: int) -> list[Any]:
    """The `count` replies after the expected bytes; the first error among all replies is raised.

    One wake-up for all of them: to wake for each piece of the expected replies, and to parse
    them, costs more than to send the commands.
    """
    # No reply is shorter than a nil, no error shorter than the expected reply in its place.
    wanted = len(expected) + count * len(b"$-1\r\n")
    if isinstance(sock, ssl.SSLSocket):  # which holds part of the bytes itself
        data = _receive(sock)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
        data = _receive(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    while len(data) < len(expected):
        data += _receive(sock)
    matches = data.startswith(expected)
    rest, more = (data[len(expected) :], 0) if matches else (data, expected.count(b"\r\n"))
    replies = _replies(sock, more + count, rest)
    each = [*replies, *(r for reply in replies if isinstance(reply, list) for r in set(reply))]
    wrong = next((reply for reply in each if isinstance(reply, Exception)), None)
    if wrong is not None or not matches:
        raise _redis_error(wrong or ValueError("the server sent an unexpected reply"))
    return replies


def _receive(sock: Any) -> bytes:
    try:
        data: bytes = sock.recv(RECEIVE_BYTES)
    except TimeoutError as error:
        raise redis.exceptions.TimeoutError("receive timed out") from error
    except OSError as error:
        raise redis.exceptions.ConnectionError("the connection was closed") from error
    if not data:
        raise redis.exceptions.ConnectionError("the connection was closed")
    return data


def _redis_error(error: Exception) -> Exception:
    """The server's error as redis-py's exception."""
    if str(error).startswith("NOSCRIPT"):
        return redis.exceptions.NoScriptError(str(error))
    if str(error).startswith("READONLY"):  # after a failover: the next connection asks again
        return redis.exceptions.ConnectionError("the server became a replica")
    return redis.exceptions.ResponseError(str(error))
