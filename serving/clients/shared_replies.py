"""Replies in the online store, so that a repeated request gets the same one from any process.

Knows keys, bytes and the server's time to live. Does not know requests or how a reply is made.
Keys are keyed hashes, which name no user and no request id. A reply is in the
store for `keep_s` at most. An erasure deletes the user's replies; a reply that was being made
meanwhile is not stored.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from features.online.connection import Connection, Script
from features.store import StoreDown
from serving.clients.breaker import Breaker

KEEP_S = 600.0
TIMEOUT_S = 0.2  # a reply is rather made again than waited for
_MAX_BYTES = 32 << 20  # that one process keeps in the store, compressed
_DIGEST_BYTES = 32

# KEYS: the user's erasure mark, the reply, the user's list of replies. ARGV: the mark that was
# read, the value, ms to keep, now in ms. Returns what is stored there already; otherwise stores
# the value, unless the user was erased meanwhile, and returns nil.
_KEEP_SCRIPT = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return false end
local kept = redis.call('GET', KEYS[2])
if kept then return kept end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[4] - ARGV[3])
redis.call('ZADD', KEYS[3], ARGV[4], KEYS[2])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return false
"""


@dataclass(frozen=True)
class StoredReply:
    """A reply, and the digest of the request that it answers (32 bytes)."""

    digest: bytes
    body: bytes


@dataclass(frozen=True)
class Lookup:
    """What the store knows. `erasure`: a mark that changes when the user is erased."""

    erasure: bytes
    reply: StoredReply | None


class SharedReplies:
    """Replies by user and request id in a Redis or Valkey. Thread safe; only `forget` raises.

    While the store does not answer (or is full), nothing is found or kept, and after two failures
    it is asked once a second. `max_bytes` bounds what this process adds within `keep_s`; beyond
    that it stores nothing more.
    """

    def __init__(
        self,
        connection: Connection,
        key: bytes,
        *,
        keep_s: float = KEEP_S,
        max_bytes: int = _MAX_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._key = connection, key
        self._keep_s, self._max_bytes, self._monotonic = keep_s, max_bytes, monotonic
        self._keep = Script(connection, _KEEP_SCRIPT)
        self._breaker = Breaker()
        self._added: deque[tuple[float, int]] = deque()  # (when, bytes), oldest first
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, user_id: str, request_id: str) -> Lookup | None:
        """The stored reply; None while the store does not answer."""
        keys = [self._mark_key(user_id), self._reply_key(user_id, request_id)]
        found = self._asked(lambda client: client.mget(keys))
        if found is None:
            return None
        mark, value = found
        return Lookup(mark or b"", _unpacked(value))

    def keep(
        self, user_id: str, request_id: str, seen: Lookup, reply: StoredReply
    ) -> StoredReply | None:
        """Stores the reply. Returns the one that another process stored first, if there is one.

        `seen`: what `find` returned before the reply was made.
        """
        value = reply.digest + zlib.compress(reply.body, 1)
        if not self._has_room(len(value)):
            return None
        user = self._hash(user_id)
        keys = [self._mark_key(user_id), self._reply_key(user_id, request_id), _list_key(user)]
        now_ms = time.time_ns() // 1_000_000  # compared with other processes' only to drop names
        arguments: list[bytes | int] = [seen.erasure, value, int(self._keep_s * 1_000), now_ms]
        return _unpacked(self._asked(lambda _: self._keep(keys, arguments)))

    def forget(self, user_id: str) -> None:
        """Deletes the user's replies.

        Raises:
            StoreDown: the store does not answer; the caller tries again.
        """
        listed = _list_key(self._hash(user_id))
        client: Any = self._connection.client
        with self._connection.errors_as_store_down():
            # First the mark: from here on no reply that was begun before is stored.
            client.set(self._mark_key(user_id), secrets.token_bytes(8), px=self._mark_ms())
            client.unlink(listed, *client.zrange(listed, 0, -1))

    def _mark_ms(self) -> int:
        """Longer than any reply that was begun before the erasure is kept, here or in memory."""
        return int(2 * self._keep_s * 1_000)

    def _asked(self, ask: Callable[[Any], Any]) -> Any:
        """What the store answers; None while it does not."""
        if not self._breaker.allows():
            return None
        try:
            with self._connection.errors_as_store_down():
                answer = ask(self._connection.client)
        except (StoreDown, RedisError):
            self._breaker.failed()
            return None
        self._breaker.succeeded()
        return answer

    def _has_room(self, size: int) -> bool:
        """Whether this process may add `size` bytes; counts them if so."""
        with self._lock:
            now_s = self._monotonic()
            while self._added and self._added[0][0] <= now_s - self._keep_s:
                self._bytes -= self._added.popleft()[1]
            if self._bytes + size > self._max_bytes:
                return False
            self._added.append((now_s, size))
            self._bytes += size
            return True

    def _mark_key(self, user_id: str) -> bytes:
        return b"tidemill erased:" + self._hash(user_id)

    def _reply_key(self, user_id: str, request_id: str) -> bytes:
        return b"tidemill reply:" + self._hash(user_id, request_id)

    def _hash(self, *words: str) -> bytes:
        """Keyed, and of the words one by one: none may hold the separator NUL."""
        stated = "\0".join(words).encode()
        return hashlib.blake2b(stated, digest_size=16, key=self._key[:64]).digest()


def _list_key(user: bytes) -> bytes:
    return b"tidemill replies of:" + user


def _unpacked(value: bytes | None) -> StoredReply | None:
    """None for nothing, and for what this module has not written."""
    if not value:
        return None
    try:
        return StoredReply(value[:_DIGEST_BYTES], zlib.decompress(value[_DIGEST_BYTES:]))
    except zlib.error:
        return None
