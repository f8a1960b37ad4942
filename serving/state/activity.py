"""Who was active when, and which videos the same people engage with.

A small fold over `events.by_user`, kept in memory and rebuilt from the topic at every
start: a cache of the log, never a truth. Knows users, times and pairs of videos. Does
not know where events come from (`serving.console.live` feeds it) nor what a request is.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.events import KIND_CODE

_TASTE = pa.array(
    [KIND_CODE[k] for k in ("long_view", "like", "follow", "cart", "order")], pa.uint8()
)
_DONE = pa.array(
    [KIND_CODE[k] for k in ("play", "long_view", "like", "share", "follow", "cart", "order")],
    pa.uint8(),
)
_DONE_KEPT = 2_000  # videos a user is known to have engaged with; the store's row keeps 50
_WINDOW = 8  # a user's last engagements that a new one is paired with


@dataclass(frozen=True)
class ActiveUser:
    user_id: str
    events: int
    last_event_ms: int
    origin: str  # of the newest event: live, replayed or simulated


@dataclass
class _Seen:
    events: int
    last_event_ms: int
    origin: str


class Activity:
    """Thread safe. Bounded: a video keeps at most `width` neighbours, users at most `users`."""

    def __init__(self, users: int = 200_000, width: int = 100) -> None:
        self._users: dict[str, _Seen] = {}
        self._recent: dict[str, deque[str]] = {}
        self._done: dict[str, dict[str, int]] = {}
        self._pairs: dict[str, dict[str, float]] = {}
        self._limit, self._width = users, width
        self._lock = threading.Lock()

    def fold(self, events: pa.Table) -> None:
        """Counts a batch of `EVENT_SCHEMA`; rows marked duplicate are left out."""
        events = events.filter(pc.invert(events["duplicate"]))
        columns = events.select(["user_id", "event_time_ms", "origin"]).to_pydict()
        with self._lock:
            for user_id, at_ms, origin in zip(*columns.values(), strict=True):
                self._count(user_id, at_ms, origin)
            self._finish(events.filter(pc.is_in(events["kind"], value_set=_DONE)))
            liked = events.filter(pc.is_in(events["kind"], value_set=_TASTE))
            pairs = zip(liked["user_id"].to_pylist(), liked["video_id"].to_pylist(), strict=True)
            for user_id, video_id in pairs:
                self._pair(user_id, video_id)

    def engaged(self, user_id: str) -> dict[str, int]:
        """Video -> when the user first played, liked, shared, followed, carted or ordered it (ms)."""
        with self._lock:
            return dict(self._done.get(user_id, {}))

    def neighbours(self, video_id: str, limit: int = 20) -> list[tuple[str, float]]:
        """Videos engaged with by the same people, with a cosine-like weight, best first."""
        with self._lock:
            beside = dict(self._pairs.get(video_id, {}))
            sizes = {other: sum(self._pairs.get(other, {}).values()) for other in beside}
        own = sum(beside.values())
        worth = [(n / (own * max(sizes[v], 1.0)) ** 0.5, v) for v, n in beside.items()]
        return [(v, w) for w, v in heapq.nlargest(limit, worth)]

    def latest(self, limit: int) -> list[ActiveUser]:
        """The users whose newest event is youngest."""
        return self._ordered(limit, heapq.nlargest)

    def dormant(self, limit: int, *, at_least: int = 10) -> list[ActiveUser]:
        """Users with a history whose newest event is oldest."""
        return self._ordered(limit, heapq.nsmallest, at_least)

    def reset(self) -> None:
        """Before the topic is read from its start again."""
        with self._lock:
            self._users.clear()
            self._recent.clear()
            self._done.clear()
            self._pairs.clear()

    def forget(self, user_id: str) -> None:
        """Drops the user. What they added to pairs of videos names nobody and stays."""
        with self._lock:
            self._users.pop(user_id, None)
            self._recent.pop(user_id, None)
            self._done.pop(user_id, None)

    def __len__(self) -> int:
        return len(self._users)

    def _ordered(self, limit: int, pick: object, at_least: int = 1) -> list[ActiveUser]:
        with self._lock:
            rows = [
                (s.last_event_ms, user) for user, s in self._users.items() if s.events >= at_least
            ]
            chosen: Sequence[tuple[int, str]] = pick(limit, rows)  # type: ignore[operator]
            found = [(user, self._users[user]) for _, user in chosen]
            return [ActiveUser(u, s.events, s.last_event_ms, s.origin) for u, s in found]

    def _count(self, user_id: str, at_ms: int, origin: str) -> None:
        seen = self._users.get(user_id)
        if seen is None:
            if len(self._users) >= self._limit:
                oldest = next(iter(self._users))
                self._users.pop(oldest)
                self._done.pop(oldest, None)
            seen = self._users[user_id] = _Seen(0, 0, origin)
        seen.events += 1
        if at_ms >= seen.last_event_ms:
            seen.last_event_ms, seen.origin = at_ms, origin

    def _finish(self, events: pa.Table) -> None:
        columns = events.select(["user_id", "video_id", "event_time_ms"]).to_pydict()
        for user_id, video_id, at_ms in zip(*columns.values(), strict=True):
            done = self._done.setdefault(user_id, {})
            done[video_id] = min(at_ms, done.get(video_id, at_ms))
            if len(done) > _DONE_KEPT:
                del done[next(iter(done))]

    def _pair(self, user_id: str, video_id: str | None) -> None:
        if video_id is None:
            return
        recent = self._recent.setdefault(user_id, deque(maxlen=_WINDOW))
        for step, other in enumerate(reversed(recent)):
            if other != video_id:
                self._add(video_id, other, 1.0 / (1 + step))
                self._add(other, video_id, 1.0 / (1 + step))
        if video_id not in recent:
            recent.append(video_id)

    def _add(self, video_id: str, other: str, weight: float) -> None:
        beside = self._pairs.setdefault(video_id, {})
        beside[other] = beside.get(other, 0.0) + weight
        if len(beside) > 2 * self._width:
            kept = heapq.nlargest(self._width, beside.items(), key=lambda pair: pair[1])
            self._pairs[video_id] = dict(kept)
