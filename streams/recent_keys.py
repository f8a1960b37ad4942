"""The memory behind duplicates: which (user, event id) pairs were seen, and when.

Knows 64-bit keys and times. Does not know events or where the memory is rebuilt from
(`streams.sequencer`). An open-addressing table in numpy: 16 bytes a slot, at most half full,
so a day of 10M events takes 0.3–0.6 GB, and a batch is looked up without a Python loop.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
_EMPTY = np.uint64(0)
_SMALLEST = 1 << 12


class RecentKeys:
    """Keys with the time at which each was first seen, forgotten after `horizon_ms`."""

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._filled = 0
        self._keys: Keys = np.zeros(_SMALLEST, dtype=np.uint64)
        self._times = np.zeros(_SMALLEST, dtype=np.int64)

    def __len__(self) -> int:
        return self._filled

    def see(self, keys: Keys, at_ms: int) -> npt.NDArray[np.bool_]:
        """bool [N]: whether each key was seen within the horizon before `at_ms`.

        Of equal keys in one batch the first is seen first. A duplicate does not prolong
        the memory of its key, so the rule can be recomputed from the log.
        """
        keys = np.where(keys == _EMPTY, np.uint64(1), keys)
        distinct, first = np.unique(keys, return_index=True)
        self._make_room(len(distinct), at_ms)
        slots, known = self._find(distinct)
        recent = known.copy()
        recent[known] = self._times[slots[known]] >= at_ms - self._horizon_ms
        self._times[slots[known & ~recent]] = at_ms
        self._insert(distinct[~known], at_ms)
        duplicate = np.ones(len(keys), dtype=np.bool_)
        duplicate[first] = recent
        return duplicate

    def _find(self, keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Slot of each key and whether it is there; the slot is free where it is not."""
        mask = len(self._keys) - 1
        slots = (keys & np.uint64(mask)).astype(np.int64)
        open_ = np.arange(len(keys))
        known = np.zeros(len(keys), dtype=np.bool_)
        while len(open_):
            held = self._keys[slots[open_]]
            match = held == keys[open_]
            known[open_[match]] = True
            open_ = open_[~match & (held != _EMPTY)]
            slots[open_] = (slots[open_] + 1) & mask
        return slots, known

    def _insert(self, keys: Keys, at_ms: int | npt.NDArray[np.int64]) -> None:
        """Puts keys (distinct, not there yet) into free slots; of two that meet, one moves on."""
        times = np.broadcast_to(np.asarray(at_ms, dtype=np.int64), keys.shape)
        self._filled += len(keys)
        while len(keys):
            slots, _ = self._find(keys)
            self._keys[slots] = keys
            won = self._keys[slots] == keys
            self._times[slots[won]] = times[won]
            keys, times = keys[~won], times[~won]

    def _make_room(self, count: int, at_ms: int) -> None:
        """Keeps the table at most half full; what the horizon has passed is dropped first."""
        if (self._filled + count) * 2 <= len(self._keys):
            return
        kept = (self._keys != _EMPTY) & (self._times >= at_ms - self._horizon_ms)
        keys, times = self._keys[kept], self._times[kept]
        size = _SMALLEST
        while size < (len(keys) + count) * 4:
            size *= 2
        self._keys = np.zeros(size, dtype=np.uint64)
        self._times = np.zeros(size, dtype=np.int64)
        self._filled = 0
        self._insert(keys, times)
