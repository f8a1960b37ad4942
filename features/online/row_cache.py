"""The rows that one folding process wrote last, so that the next batch need not read them.

Knows hashes of ids, bytes, and turns: how many times rows were put. Does not decide anything:
whoever asks must know since which turn rows cannot be stale.
"""

from __future__ import annotations

from threading import Lock

import numpy as np

from features.rows.byte_slices import Spans, offsets_of, readable_bytes
from features.store import EntityName

FIRST_BYTES, FIRST_SLOTS = 1 << 16, 1 << 10
GROWTH = 2  # how much longer a row may become before it moves
_NOWHERE = 0  # the slot of whoever has no row


class RowCache:
    """At least the `limit // 2` and at most `limit` rows written last, per entity.

    Rows go by a hash of their id (`keys`, uint64) and are known by another (`checks`, uint64):
    two ids that share a place there, made to do so or not, never see each other's row. The
    second must be keyed, since nobody else compares what an owner writes. Safe for threads. When there are too many, the
    half that was written last stays: so nothing is done row by row.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows: dict[EntityName, _Rows] = {}
        self._lock = Lock()

    def find(
        self, entity: EntityName, keys: np.ndarray, checks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where the rows of these ids lie: (uint8, starts, sizes, turns), the latter int64 [N];
        size 0 where there is none. The bytes stand until the next `put`."""
        with self._lock:
            kept = self._rows.get(entity) or _Rows()
            return kept.find(kept.slots(keys), checks)

    def turn(self, entity: EntityName) -> int:
        """The turn of the next `put`."""
        with self._lock:
            kept = self._rows.get(entity)
            return kept.turns if kept else 0

    def put(self, entity: EntityName, keys: np.ndarray, checks: np.ndarray, rows: Spans) -> None:
        """Of equal keys the last one stays."""
        if not self.limit or not len(keys):
            return
        with self._lock:
            kept = self._rows.setdefault(entity, _Rows())
            kept.put(keys, checks, rows)
            if len(kept) > self.limit:
                self._rows[entity] = kept.newest(max(1, self.limit // 2))

    def drop(self, entity: EntityName, keys: np.ndarray) -> None:
        with self._lock:
            if entity in self._rows:
                self._rows[entity].drop(keys)

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()


class _Rows:
    """Rows in one buffer, each with room to grow, so that most are written where they were."""

    def __init__(self) -> None:
        self._table = np.zeros(FIRST_SLOTS, np.int64)
        self._key, self._check = np.zeros((2, 1), np.uint64)
        # By slot: where the row lies, its bytes, those it may take there, and when it was written.
        self._start, self._length, self._room, self._turn = np.zeros((4, 1), np.int64)
        self._data = np.empty(FIRST_BYTES, np.uint8)
        self._end = self.turns = 0

    def __len__(self) -> int:
        return len(self._key) - 1

    def slots(self, keys: np.ndarray) -> np.ndarray:
        from features.kernels.packing import found_slots

        return np.asarray(found_slots(self._table, self._key, keys))

    def find(
        self, slot: np.ndarray, checks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        size = np.where(self._check[slot] == checks, self._length[slot], 0)
        return self._data, self._start[slot], size, self._turn[slot]

    def cut(self, slot: np.ndarray) -> Spans:
        from features.kernels.packing import gathered

        data = readable_bytes(self._data)
        return Spans(*gathered(data, self._start[slot], self._length[slot]))

    def put(self, keys: np.ndarray, checks: np.ndarray, rows: Spans) -> None:
        from features.kernels.packing import scatter

        slot = self._with_new(keys)
        place = np.arange(len(slot))
        self._turn[slot] = place
        if not (last := self._turn[slot] == place).all():
            slot, checks, rows = slot[last], checks[last], rows.take(np.flatnonzero(last))
        lengths, self._check[slot] = rows.lengths, checks
        grown = np.flatnonzero(lengths > self._room[slot])
        if len(grown):
            self._move(slot[grown], GROWTH * lengths[grown])
        self._length[slot], self._turn[slot] = lengths, self.turns
        self.turns += 1
        scatter(readable_bytes(rows.data), rows.offsets, self._data, self._start[slot])

    def drop(self, keys: np.ndarray) -> None:
        self._length[self.slots(keys)] = 0

    def newest(self, n: int) -> _Rows:
        """The `n` rows written last, by themselves."""
        last = np.argsort(self._turn[1:], kind="stable")[-n:] + 1
        kept = _Rows()
        kept.put(self._key[last], self._check[last], self.cut(last))
        kept._turn[kept.slots(self._key[last])], kept.turns = self._turn[last], self.turns
        return kept

    def _with_new(self, keys: np.ndarray) -> np.ndarray:
        """The keys' slots; those that have none get one."""
        from features.kernels.packing import enter

        slot = self.slots(keys)
        new = np.unique(keys[slot == _NOWHERE])
        if not len(new):
            return slot
        columns, more = (self._start, self._length, self._room, self._turn), np.zeros(len(new))
        grown = (np.append(column, more.astype(np.int64)) for column in columns)
        self._start, self._length, self._room, self._turn = grown
        first, self._key = len(self._key), np.append(self._key, new)
        self._check = np.append(self._check, np.zeros_like(new))
        if 2 * len(self._key) > len(self._table):
            size = 1 << (4 * len(self._key)).bit_length()
            first, self._table = 1, np.zeros(size, np.int64)
        enter(self._table, self._key, first)
        return self.slots(keys)

    def _move(self, slot: np.ndarray, room: np.ndarray) -> None:
        """Gives these slots other places, of so many bytes each, whose content is undefined."""
        self._room[slot] = 0
        more = int(room.sum())
        if self._end + more > len(self._data):
            self._compact(more)
        self._start[slot], self._room[slot] = self._end + offsets_of(room)[:-1], room
        self._end += more

    def _compact(self, more: int) -> None:
        from features.kernels.packing import move

        offsets = offsets_of(self._room)
        start, end = offsets[:-1].copy(), int(offsets[-1])
        data = np.empty(2 * (end + more), np.uint8)
        size = np.minimum(self._length, self._room)  # those about to move have no room here
        move(readable_bytes(self._data), self._start, size, data, start)
        self._data, self._start, self._end = data, start, end
