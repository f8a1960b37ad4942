"""The replies of the last ten minutes, so that a repeated request gets the same reply.

Knows requests and bytes. Does not know how a reply is made. Replies are kept in this process and,
where there is a `SharedReplies`, in the online store for the other processes. Both are bounded: a
reply is made again after `keep_s` and where newer replies have displaced it. While the store is
down, each process knows its own replies only.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from serving.clients.shared_replies import KEEP_S, Lookup, SharedReplies, StoredReply
from serving.pipeline.requests import Request, states_request_id

_MAX_BYTES = 32 << 20
_WAIT_S = 10.0  # longer than the deadlines of all stages together

_CONFLICT = (
    "another request of this user has the same request_id: send a new one with each new request"
)

_Key = tuple[str, str]  # (user_id, request_id)


class RequestConflict(ValueError):
    """The user has sent another request with the same request id."""


class CallerLeft(Exception):
    """The caller left while the reply was being made, which ends the work."""


@dataclass(frozen=True)
class _Entry:
    digest: bytes
    expires_s: float
    erasure: bytes  # the user's mark when the request arrived (`Lookup.erasure`)
    reply: Future[bytes] = field(default_factory=Future)

    @property
    def size(self) -> int:
        made = self.reply.done() and self.reply.exception() is None
        return len(self.reply.result()) if made else 0


class RecentReplies:
    """Replies by user and request id. Thread safe.

    `shared`: the replies of all processes; None keeps to this one.
    """

    def __init__(
        self,
        shared: SharedReplies | None = None,
        *,
        keep_s: float = KEEP_S,
        max_bytes: int = _MAX_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._keep_s, self._max_bytes, self._monotonic = keep_s, max_bytes, monotonic
        self._entries: dict[_Key, _Entry] = {}  # oldest first
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def reply(self, request: Request, make: Callable[[], bytes]) -> bytes:
        """The reply to `request`: `make()`, or what it returned for the same request before.

        A request without a request id of the caller's is never a repetition. Requests that
        arrive while the first one is being answered wait for its reply.

        Raises:
            RequestConflict: the user has sent another body with this request id.
        """
        if not states_request_id(request):
            return make()
        key = (request.user_id, request.request_id)
        digest = hashlib.sha256(request.model_dump_json().encode()).digest()
        seen = self._shared.find(*key) if self._shared else None
        entry, first = self._entry(key, digest, seen)
        if entry.digest != digest:
            raise RequestConflict(_CONFLICT)
        if not first:
            try:
                return entry.reply.result(_WAIT_S)
            except CallerLeft:
                return self.reply(request, make)  # this caller's turn: the entry is gone
        return self._make(key, entry, lambda: self._shared_reply(key, digest, seen, make))

    def forget(self, user_id: str) -> None:
        """Drops the user's replies. Raises `StoreDown` if those in the store may remain."""
        if self._shared is not None:
            self._shared.forget(user_id)
        with self._lock:
            for key in [key for key in self._entries if key[0] == user_id]:
                self._drop(key)

    def _entry(self, key: _Key, digest: bytes, seen: Lookup | None) -> tuple[_Entry, bool]:
        """The entry of the key, and whether it is new. One from before an erasure is dropped."""
        with self._lock:
            self._drop_expired()
            entry = self._entries.get(key)
            if entry is not None and seen is not None and entry.erasure != seen.erasure:
                self._drop(key)
                entry = None
            if entry is not None:
                return entry, False
            expires_s = self._monotonic() + self._keep_s
            entry = _Entry(digest, expires_s, seen.erasure if seen else b"")
            self._entries[key] = entry
            return entry, True

    def _shared_reply(
        self, key: _Key, digest: bytes, seen: Lookup | None, make: Callable[[], bytes]
    ) -> bytes:
        """Another process's reply to the request, else `make()`, which is then shared."""
        if self._shared is None or seen is None:
            return make()
        kept = seen.reply
        if kept is None:
            made = StoredReply(digest, make())
            kept = self._shared.keep(*key, seen, made) or made
        if kept.digest != digest:
            raise RequestConflict(_CONFLICT)
        return kept.body

    def _make(self, key: _Key, entry: _Entry, make: Callable[[], bytes]) -> bytes:
        try:
            reply = make()
        except BaseException as error:
            with self._lock:
                self._drop(key, entry)
            entry.reply.set_exception(error)
            raise
        with self._lock:
            entry.reply.set_result(reply)
            if self._entries.get(key) is entry:  # not erased meanwhile
                self._bytes += len(reply)
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))
        return reply

    def _drop_expired(self) -> None:
        now_s = self._monotonic()
        while self._entries:
            key, oldest = next(iter(self._entries.items()))
            if oldest.expires_s > now_s:
                return
            self._drop(key)

    def _drop(self, key: _Key, only: _Entry | None = None) -> None:
        entry = self._entries.get(key)
        if entry is not None and only in (None, entry):
            del self._entries[key]
            self._bytes -= entry.size
