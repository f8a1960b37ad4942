"""Writing for as long as a key is not touched: `WATCH`, then `MULTI`, commands and `EXEC`.

Knows the server's transactions. Does not know what the commands write.

The next watch is asked for together with each `EXEC`, so that it costs no trip of its own. A
server that forgets the watch (a restart, a failover, a closed connection) forgets what was
queued with it; a key that is deleted, evicted or flushed away counts as touched.
"""

from __future__ import annotations

from features.online.connection import Connection, DedicatedConnection, bulk

_DONE, _QUEUED = b"+OK\r\n", b"+QUEUED\r\n"


class Watch:
    """Writes while `key` holds what `begin` laid into it and nobody has touched it since, under
    the `fact` (key and hash field) that `begin` was given."""

    def __init__(self, connection: Connection, key: bytes, fact: tuple[bytes, bytes]) -> None:
        self._connection, self._key = connection, key
        ask = (packed(b"WATCH", key), packed(b"GET", key), packed(b"HGET", *fact))
        self._end = b"".join((packed(b"EXEC"), *ask))
        self._own: DedicatedConnection | None = None
        self._wanted: tuple[bytes, bytes] | None = None
        self.stands = False  # as of the last answer

    def begin(self, token: bytes, fact: bytes) -> bool:
        """Sets the key, and by that ends every other watch of it; whether it stands then."""
        self._wanted = (token, fact)
        packed_set = packed(b"SET", self._key, token)
        start = packed(b"UNWATCH") + packed(b"MULTI")
        with self._connection.failures():
            for _ in range(2):  # the kept connection may have died while idle
                self._own = self._own or self._connection.dedicated()
                if self._exchange([start, packed_set, self._end], 2 * _DONE + _QUEUED):
                    break
        return self.stands

    def write(self, commands: int, data: bytes | memoryview) -> bool:
        """Executes so many packed commands in one step; False: the key was touched before, and
        nothing is written, or nobody knows what is."""
        if not self.stands:
            return False
        with self._connection.failures():
            known = _DONE + commands * _QUEUED
            return self._exchange([packed(b"MULTI"), data, self._end], known)

    def _exchange(self, pieces: list[bytes | memoryview], known: bytes) -> bool:
        """Whether the commands were executed and answered."""
        own, self._own, self.stands = self._own, None, False
        if own is None or (replies := own.exchange(pieces, known, 4)) is None:
            return False
        executed, _, token, fact = replies
        self._own, done = own, executed is not None
        self.stands = done and (token, fact) == self._wanted
        return done


def packed(*words: bytes) -> bytes:
    """A command in RESP."""
    return b"".join((b"*%d\r\n" % len(words), *map(bulk, words)))
