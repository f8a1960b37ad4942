"""Writes that are dropped if a key was touched: `WATCH`, then `MULTI`, commands and `EXEC`.

Knows the server's transactions. Does not know what the commands write.

The next `WATCH` is sent together with each `EXEC`, so it costs no round trip of its own. A
server that loses the watch (restart, failover, closed connection) loses the queued commands
with it. A key that is deleted, evicted or flushed counts as touched.
"""

from __future__ import annotations

from features.online.connection import Connection, DedicatedConnection, bulk_string

_OK, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


class OptimisticTransaction:
    """Executes commands while `key` holds the token of the last `begin` and was not touched
    since, and the `guard` (key and hash field) holds the value given to that `begin`.

    The guard is checked after each execution, for the next one: a writer that changes the
    guard must touch the key too, or one more execution may succeed.
    """

    def __init__(self, connection: Connection, key: bytes, guard: tuple[bytes, bytes]) -> None:
        self._connection, self._key = connection, key
        watch = (pack_command(b"WATCH", key), pack_command(b"GET", key))
        self._exec = b"".join((pack_command(b"EXEC"), *watch, pack_command(b"HGET", *guard)))
        self._dedicated: DedicatedConnection | None = None
        self._expected: tuple[bytes, bytes] | None = None
        self.valid = False  # as of the last reply

    def begin(self, token: bytes, guard_value: bytes) -> bool:
        """Sets the key, which invalidates every other transaction on it; True if now valid."""
        self._expected = (token, guard_value)
        packed_set = pack_command(b"SET", self._key, token)
        start = pack_command(b"UNWATCH") + pack_command(b"MULTI")
        with self._connection.errors_as_store_down():
            for _ in range(2):  # the kept connection may have died while idle
                self._dedicated = self._dedicated or self._connection.dedicated()
                if self._exchange([start, packed_set, self._exec], 2 * _OK + _QUEUED):
                    break
        return self.valid

    def execute(self, commands: int, packed: bytes | memoryview) -> bool:
        """Executes so many packed commands in one step.

        False: the key was touched and nothing is written, or the connection broke and the
        outcome is unknown.
        """
        if not self.valid:
            return False
        with self._connection.errors_as_store_down():
            expected = _OK + commands * _QUEUED
            return self._exchange([pack_command(b"MULTI"), packed, self._exec], expected)

    def _exchange(self, pieces: list[bytes | memoryview], expected: bytes) -> bool:
        """Whether the commands were executed and answered."""
        dedicated, self._dedicated, self.valid = self._dedicated, None, False
        if dedicated is None or (replies := dedicated.exchange(pieces, expected, 4)) is None:
            return False
        executed, _, token, guard_value = replies
        self._dedicated, done = dedicated, executed is not None
        self.valid = done and (token, guard_value) == self._expected
        return done


def pack_command(*words: bytes) -> bytes:
    """A command in RESP."""
    return b"".join((b"*%d\r\n" % len(words), *map(bulk_string, words)))
