"""When each user was last active, and which items the same users engage with.

Knows users, times and pairs of items. Does not know where events come from
(`serving.console.live` feeds it) nor requests. Kept in memory and rebuilt from
`events.by_user` at every start.
"""

from __future__ import annotations

import heapq
import sys
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.pipeline.items import RowNumbers
from streams.contract.declaration import contract
from streams.contract.signals import PROFILE, Signals

_NOT_PAIRED = ("play", "share")  # a play may be accidental; declared signals are all paired
_ENGAGED_KEPT = 2_000  # engaged items kept per user; the store's row keeps 50
_WINDOW = 8  # each engagement is paired with this many earlier ones of the user
_REWEIGH_AFTER = 10_000  # pairings, after which an item's neighbours are weighed again


@dataclass(frozen=True)
class ActiveUser:
    """One user's event count and newest event."""

    user_id: str
    events: int
    last_event_ms: int
    origin: str  # of the newest event: live, replayed or simulated


@dataclass
class _UserActivity:
    events: int
    last_event_ms: int
    origin: str


class _Engaged:
    """One user's engaged items and the time of the first event on each, oldest entry first.

    16 bytes an item where a dict takes 140: what a process keeps of its users grows with their
    events, so this is what makes it grow.
    """

    __slots__ = ("_items", "_times_ms")

    def __init__(self) -> None:
        self._items: list[str] = []
        self._times_ms = array("q")

    def add(self, item_id: str, at_ms: int) -> None:
        """`item_id`: an interned string, so that most comparisons are of addresses."""
        try:
            found = self._items.index(item_id)
        except ValueError:
            self._items.append(item_id)
            self._times_ms.append(at_ms)
            if len(self._items) > _ENGAGED_KEPT:
                del self._items[0], self._times_ms[0]
        else:
            self._times_ms[found] = min(at_ms, self._times_ms[found])

    def before(self, at_ms: int) -> list[str]:
        """Items first engaged with before that time."""
        each = zip(self._items, self._times_ms, strict=True)
        return [item_id for item_id, first_ms in each if first_ms < at_ms]

    def to_dict(self) -> dict[str, int]:
        return dict(zip(self._items, self._times_ms, strict=True))


@dataclass(frozen=True)
class _Neighbours:
    """An item's best neighbours: rows int64 and weights float64, best first.

    pairings: how many there had been. unknown: ids without a row were left out, of a table that
    had `table_rows` rows.
    """

    rows: np.ndarray
    weights: np.ndarray
    pairings: int
    unknown: bool
    table_rows: int


class Activity:
    """Bounded: `users` users, and `width` neighbours per item. Thread safe."""

    def __init__(self, users: int = 200_000, width: int = 100) -> None:
        self._users: dict[str, _UserActivity] = {}
        self._recent: dict[str, deque[str]] = {}
        self._engaged: dict[str, _Engaged] = {}
        self._pairs: dict[str, dict[str, float]] = {}
        self._totals: dict[str, float] = {}  # item -> sum of its pairs' weights
        self._pairings = 0
        self._neighbours: dict[str, _Neighbours] = {}
        self._limit, self._width = users, width
        self._lock = threading.Lock()

    def fold(self, events: pa.Table) -> None:
        """Adds a batch of `EVENT_SCHEMA`, ignoring rows marked duplicate.

        A profile is stated by the owner: it is no activity of the user.
        """
        acted = pc.not_equal(events["kind"], PROFILE.number)
        events = events.filter(pc.and_(acted, pc.invert(events["duplicate"])))
        engaged, paired = _kind_codes(contract().signals)
        columns = events.select(["user_id", "event_time_ms", "origin"]).to_pydict()
        with self._lock:
            for user_id, at_ms, origin in zip(*columns.values(), strict=True):
                self._count(user_id, at_ms, origin)
            self._add_engaged(events.filter(pc.is_in(events["kind"], value_set=engaged)))
            pairs = events.filter(pc.is_in(events["kind"], value_set=paired))
            rows = zip(pairs["user_id"].to_pylist(), pairs["video_id"].to_pylist(), strict=True)
            for user_id, item_id in rows:
                self._pair(user_id, item_id)

    def engaged_with(self, user_id: str, before_ms: int) -> list[str]:
        """Items with which the user first engaged before that event time."""
        with self._lock:
            engaged = self._engaged.get(user_id)
            return engaged.before(before_ms) if engaged else []

    def engaged(self, user_id: str) -> dict[str, int]:
        """Item -> event time (ms) of the user's first engagement with it (`Signals.engaged`)."""
        with self._lock:
            engaged = self._engaged.get(user_id)
            return engaged.to_dict() if engaged else {}

    def neighbours(self, item_id: str, limit: int = 20) -> list[tuple[str, float]]:
        """Items engaged with by the same users, with a cosine-like weight, best first."""
        with self._lock:
            pairs = dict(self._pairs.get(item_id, {}))
            totals = [self._totals.get(other, 0.0) for other in pairs]
            own = self._totals.get(item_id, 0.0)
        weighted = [
            (weight / (own * max(total, 1.0)) ** 0.5, other)
            for (other, weight), total in zip(pairs.items(), totals, strict=True)
        ]
        return [(other, weight) for weight, other in heapq.nlargest(limit, weighted)]

    def neighbour_rows(self, item_id: str, numbers: RowNumbers) -> tuple[np.ndarray, np.ndarray]:
        """`neighbours` that have a row: rows int64 and weights float64, best first.

        They are weighed again once the item has new pairs, and otherwise after `_REWEIGH_AFTER`
        pairings of any items, which change the weights a little.
        """
        kept = self._neighbours.get(item_id)
        if kept is None or self._is_old(kept, numbers):
            at, size = self._pairings, len(numbers)
            found = self.neighbours(item_id)
            rows = numbers.rows_of(other for other, _ in found)
            weights, known = np.array([weight for _, weight in found], np.float64), rows >= 0
            kept = _Neighbours(rows[known], weights[known], at, not known.all(), size)
            with self._lock:
                if self._pairings == at:  # else it may have new pairs already
                    self._neighbours[item_id] = kept
        return kept.rows, kept.weights

    def _is_old(self, kept: _Neighbours, numbers: RowNumbers) -> bool:
        more_rows = kept.unknown and kept.table_rows != len(numbers)
        return more_rows or self._pairings - kept.pairings > _REWEIGH_AFTER

    def latest(self, limit: int) -> list[ActiveUser]:
        """The users with the newest events."""
        return self._ordered(limit, heapq.nlargest)

    def dormant(self, limit: int, *, at_least: int = 10) -> list[ActiveUser]:
        """Users with `at_least` events, longest inactive first."""
        return self._ordered(limit, heapq.nsmallest, at_least)

    def reset(self) -> None:
        """Drops everything, before the topic is read from its start again."""
        with self._lock:
            self._users.clear()
            self._recent.clear()
            self._engaged.clear()
            self._pairs.clear()
            self._totals.clear()
            self._neighbours.clear()

    def forget(self, user_id: str) -> None:
        """Drops the user. Their share in the counts of item pairs is anonymous and stays."""
        with self._lock:
            self._users.pop(user_id, None)
            self._recent.pop(user_id, None)
            self._engaged.pop(user_id, None)

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
        user = self._users.get(user_id)
        if user is None:
            if len(self._users) >= self._limit:
                oldest = next(iter(self._users))
                self._users.pop(oldest)
                self._engaged.pop(oldest, None)
                self._recent.pop(oldest, None)
            user = self._users[user_id] = _UserActivity(0, 0, origin)
        user.events += 1
        if at_ms >= user.last_event_ms:
            user.last_event_ms, user.origin = at_ms, origin

    def _add_engaged(self, events: pa.Table) -> None:
        columns = events.select(["user_id", "video_id", "event_time_ms"]).to_pydict()
        for user_id, item_id, at_ms in zip(*columns.values(), strict=True):
            if item_id is None:
                continue
            engaged = self._engaged.get(user_id)
            if engaged is None:
                engaged = self._engaged[user_id] = _Engaged()
            engaged.add(sys.intern(item_id), at_ms)

    def _pair(self, user_id: str, item_id: str | None) -> None:
        if item_id is None:
            return
        item_id = sys.intern(item_id)  # each pair of items would keep a copy of its own
        recent = self._recent.setdefault(user_id, deque(maxlen=_WINDOW))
        for step, other in enumerate(reversed(recent)):
            if other != item_id:
                self._add_pair(item_id, other, 1.0 / (1 + step))
                self._add_pair(other, item_id, 1.0 / (1 + step))
        if item_id not in recent:
            recent.append(item_id)

    def _add_pair(self, item_id: str, other: str, weight: float) -> None:
        pairs = self._pairs.setdefault(item_id, {})
        pairs[other] = pairs.get(other, 0.0) + weight
        self._totals[item_id] = self._totals.get(item_id, 0.0) + weight
        if len(pairs) > 2 * self._width:
            kept = heapq.nlargest(self._width, pairs.items(), key=lambda pair: pair[1])
            self._pairs[item_id] = dict(kept)
            self._totals[item_id] = sum(weight for _, weight in kept)
        self._pairings += 1
        self._neighbours.pop(item_id, None)


@lru_cache(maxsize=4)
def _kind_codes(signals: Signals) -> tuple[pa.Array, pa.Array]:
    """The numbers of the signals that count as engagement, and of those that pair items."""
    paired = [kind for kind in signals.engaged if kind not in _NOT_PAIRED]
    codes = ([signals.number[kind] for kind in kinds] for kinds in (signals.engaged, paired))
    engaged, pairing = (pa.array(each, pa.uint8()) for each in codes)
    return engaged, pairing
