"""A connection to the online store whose every failure is a `StoreDown` that says the fix.

Knows redis-py and Lua scripts. Does not know rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from features.store import StoreDown


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

    def hget_many(self, places: Sequence[tuple[bytes, bytes]]) -> list[bytes | None]:
        """One HGET per (key, field), sent together; replies in the same order.

        Packs the commands itself: redis-py's pipeline takes three times as long for 500.
        """
        packed = b"".join([_hget(key, field) for key, field in places])
        with self.failures():
            try:
                return self._replies(packed, len(places))
            except redis.exceptions.ConnectionError:
                return self._replies(packed, len(places))  # the pooled connection had died

    def _replies(self, packed: bytes, count: int) -> list[bytes | None]:
        pool = self.client.connection_pool
        connection = pool.get_connection()
        try:
            connection.send_packed_command([packed])
            return [connection.read_response() for _ in range(count)]
        except BaseException:
            connection.disconnect()  # unread replies must not answer the next command
            raise
        finally:
            pool.release(connection)

    def ping(self) -> bool:
        try:
            with self.failures():
                return bool(self.client.ping())
        except StoreDown:
            return False


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

    def _digest(self) -> str:
        if not self._sha:
            self._sha = self._connection.client.script_load(self._source)
        return self._sha


def _hget(key: bytes, field: bytes) -> bytes:
    return b"*3\r\n$4\r\nHGET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(field), field)
