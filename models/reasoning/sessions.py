"""Engagement as steps: one per item and session, with its observations.

Knows kinds, gaps and novelty. Numpy only: training and serving observe alike. Does not know
roles. A step is a user's strongest action on one item in one session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streams.contract.clock import DAY_MS, HOUR_MS

# Weakest first: a step keeps the strongest. Other kinds are no engagement.
KINDS: tuple[str, ...] = ("play", "long_view", "like", "share", "follow", "cart", "order")
SESSION_GAP_MS = HOUR_MS
_POSITION_EDGES = (1, 2, 4, 8)
_GAP_EDGES_MS = (60_000, 600_000, HOUR_MS, DAY_MS, 7 * DAY_MS)
_NOVELTY_EDGES = (0.25, 0.5, 0.75)
SIZES: dict[str, int] = {"position": 5, "kind": len(KINDS), "gap": 6, "novelty": 4}
CHANNELS = tuple(SIZES)
UNSEEN = -1  # an unknown observation, such as the kind of a future step


@dataclass(frozen=True)
class EngagementSteps:
    """One user's steps, oldest first. item, kind, session: int64 [S]; time_ms: int64 [S]."""

    item: np.ndarray
    kind: np.ndarray
    time_ms: np.ndarray
    session: np.ndarray

    def __len__(self) -> int:
        return len(self.item)


def fold_steps(
    items: Sequence[int], kinds: Sequence[int], times_ms: Sequence[int]
) -> EngagementSteps:
    """Folds actions, oldest first, into steps. `kinds` are indices of KINDS."""
    rows: list[list[int]] = []
    place: dict[int, int] = {}
    session, last_ms = 0, times_ms[0] if len(times_ms) else 0
    for item, kind, time_ms in zip(items, kinds, times_ms, strict=True):
        if time_ms - last_ms >= SESSION_GAP_MS:
            session, place = session + 1, {}
        last_ms = time_ms
        if item in place:
            rows[place[item]][1] = max(rows[place[item]][1], kind)
        else:
            place[item] = len(rows)
            rows.append([item, kind, time_ms, session])
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return EngagementSteps(*columns)


def observe_steps(done: EngagementSteps, genres: np.ndarray) -> np.ndarray:
    """int64 [S, 4] in CHANNELS' order. genres: float32 [N, G], unit rows or zero."""
    if not len(done):
        return np.zeros((0, len(CHANNELS)), dtype=np.int64)
    first = np.r_[True, np.diff(done.session) > 0]
    start = np.maximum.accumulate(np.where(first, np.arange(len(done)), 0))
    gap = np.r_[_GAP_EDGES_MS[-1], np.diff(done.time_ms)]
    position = np.searchsorted(_POSITION_EDGES, np.arange(len(done)) - start, side="right")
    fresh = np.searchsorted(_NOVELTY_EDGES, novelty(done.item, genres), side="right")
    return np.stack([position, done.kind, gap_bucket(gap), fresh], axis=1).astype(np.int64)


def gap_bucket(gap_ms: np.ndarray) -> np.ndarray:
    """int64: the bucket of each gap before a step, in 0..5."""
    return np.searchsorted(_GAP_EDGES_MS, gap_ms, side="right")


def position_bucket(position: int) -> int:
    """The bucket of a step's position in its session, in 0..4."""
    return int(np.searchsorted(_POSITION_EDGES, position, side="right"))


def novelty(item: np.ndarray, genres: np.ndarray) -> np.ndarray:
    """float [S]: 1 - cosine of an item's genres and the sum of those before it; first 1."""
    own = genres[item]
    before = np.cumsum(own, axis=0) - own
    norm = np.linalg.norm(before, axis=1)
    found: np.ndarray = 1.0 - (own * before).sum(axis=1) / np.maximum(norm, 1e-6)
    return found


def novelty_bucket(item: int, seen: np.ndarray, genres: np.ndarray) -> int:
    """The bucket of an item that would follow `seen`."""
    value = novelty(np.r_[seen, item], genres)[-1]
    return int(np.searchsorted(_NOVELTY_EDGES, value, side="right"))
