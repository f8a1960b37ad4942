"""The rows that a folding process wrote last, so that the next batch need not read them.

Knows hashes of ids, bytes, and sequence numbers: how many times rows were put. Does not know
whether a cached row is still current; the caller's lease decides from which sequence number on
rows cannot be stale (`features.online.lease`).
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.rows.byte_slices import (
    ByteSlices,
    offsets_from_lengths,
    readonly_bytes,
    readonly_view,
)
from features.store import EntityName

INITIAL_BYTES, INITIAL_SLOTS = 1 << 16, 1 << 10
GROWTH = 2  # a row gets this times its length before it must move
_NO_SLOT = 0


class EntityIds(NamedTuple):
    """A batch's distinct ids, with the two hashes under which the cache finds their rows."""

    ids: ByteSlices
    keys: np.ndarray  # uint64 [N], XXH64: the slot
    checks: np.ndarray  # uint64 [N], Python's hash, keyed per process: identifies the id

    @classmethod
    def of(cls, names: pa.StringArray) -> EntityIds:
        from features.kernels.packing import hashes

        ids = ByteSlices.from_arrow(names)
        keys = np.asarray(hashes(readonly_bytes(ids.data), readonly_view(ids.offsets)))
        checks = np.fromiter(map(hash, names.to_pylist()), np.int64, len(names))
        return cls(ids, keys, checks.view(np.uint64))

    def text(self, places: np.ndarray) -> list[str]:
        return [raw.decode() for raw in self.ids.take(places).to_list()]


class RowCache:
    """Between `limit // 2` and `limit` of the rows written last, per entity. Safe for threads.

    A row is stored by one hash of its id (`keys`, uint64) and identified by another (`checks`,
    uint64), so two ids with the same key, by accident or intent, never see each other's row.
    `checks` must be keyed, because rows written under a lease are not compared. When the cache
    is full, the half that was written last stays, so nothing is evicted row by row.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._rows: dict[EntityName, _EntityRows] = {}
        self._lock = Lock()

    def find(
        self, entity: EntityName, keys: np.ndarray, checks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where these ids' rows are: (data uint8, starts, sizes, sequence numbers), the latter
        int64 [N]; size 0 where there is no row. The data is valid until the next `put`."""
        with self._lock:
            rows = self._rows.get(entity) or _EntityRows()
            return rows.find(rows.slots(keys), checks)

    def next_sequence(self, entity: EntityName) -> int:
        """The sequence number of the next `put`."""
        with self._lock:
            rows = self._rows.get(entity)
            return rows.next_sequence if rows else 0

    def put(
        self, entity: EntityName, keys: np.ndarray, checks: np.ndarray, rows: ByteSlices
    ) -> None:
        """Of equal keys the last one stays."""
        if not self.limit or not len(keys):
            return
        with self._lock:
            kept = self._rows.setdefault(entity, _EntityRows())
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


class _EntityRows:
    """Rows in one buffer, each with room to grow, so that most are rewritten in place."""

    def __init__(self) -> None:
        self._table = np.zeros(INITIAL_SLOTS, np.int64)
        self._key, self._check = np.zeros((2, 1), np.uint64)
        # By slot: start, length and room in `_data`, and the sequence number of the last put.
        self._start, self._length, self._room, self._sequence = np.zeros((4, 1), np.int64)
        self._data = np.empty(INITIAL_BYTES, np.uint8)
        self._end = self.next_sequence = 0

    def __len__(self) -> int:
        return len(self._key) - 1

    def slots(self, keys: np.ndarray) -> np.ndarray:
        from features.kernels.packing import found_slots

        return np.asarray(found_slots(self._table, self._key, keys))

    def find(
        self, slot: np.ndarray, checks: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        size = np.where(self._check[slot] == checks, self._length[slot], 0)
        return self._data, self._start[slot], size, self._sequence[slot]

    def slices(self, slot: np.ndarray) -> ByteSlices:
        from features.kernels.packing import gathered

        data = readonly_bytes(self._data)
        return ByteSlices(*gathered(data, self._start[slot], self._length[slot]))

    def put(self, keys: np.ndarray, checks: np.ndarray, rows: ByteSlices) -> None:
        from features.kernels.packing import scatter

        slot = self._slots_with_new(keys)
        place = np.arange(len(slot))
        self._sequence[slot] = place
        if not (last := self._sequence[slot] == place).all():
            slot, checks, rows = slot[last], checks[last], rows.take(np.flatnonzero(last))
        lengths, self._check[slot] = rows.lengths, checks
        grown = np.flatnonzero(lengths > self._room[slot])
        if len(grown):
            self._move(slot[grown], GROWTH * lengths[grown])
        self._length[slot], self._sequence[slot] = lengths, self.next_sequence
        self.next_sequence += 1
        scatter(readonly_bytes(rows.data), rows.offsets, self._data, self._start[slot])

    def drop(self, keys: np.ndarray) -> None:
        self._length[self.slots(keys)] = 0

    def newest(self, n: int) -> _EntityRows:
        """A copy that holds only the `n` rows written last."""
        last = np.argsort(self._sequence[1:], kind="stable")[-n:] + 1
        kept = _EntityRows()
        kept.put(self._key[last], self._check[last], self.slices(last))
        kept._sequence[kept.slots(self._key[last])] = self._sequence[last]
        kept.next_sequence = self.next_sequence
        return kept

    def _slots_with_new(self, keys: np.ndarray) -> np.ndarray:
        """The keys' slots; keys without one get one."""
        from features.kernels.packing import enter

        slot = self.slots(keys)
        new = np.unique(keys[slot == _NO_SLOT])
        if not len(new):
            return slot
        columns = (self._start, self._length, self._room, self._sequence)
        grown = (np.append(column, np.zeros(len(new), np.int64)) for column in columns)
        self._start, self._length, self._room, self._sequence = grown
        first, self._key = len(self._key), np.append(self._key, new)
        self._check = np.append(self._check, np.zeros_like(new))
        if 2 * len(self._key) > len(self._table):
            size = 1 << (4 * len(self._key)).bit_length()
            first, self._table = 1, np.zeros(size, np.int64)
        enter(self._table, self._key, first)
        return self.slots(keys)

    def _move(self, slot: np.ndarray, room: np.ndarray) -> None:
        """Gives these slots new places of `room` bytes each, with undefined content."""
        self._room[slot] = 0
        more = int(room.sum())
        if self._end + more > len(self._data):
            self._compact(more)
        self._start[slot] = self._end + offsets_from_lengths(room)[:-1]
        self._room[slot] = room
        self._end += more

    def _compact(self, more: int) -> None:
        """Moves all rows to a buffer without gaps and with `more` bytes free."""
        from features.kernels.packing import move

        offsets = offsets_from_lengths(self._room)
        start, end = offsets[:-1].copy(), int(offsets[-1])
        data = np.empty(2 * (end + more), np.uint8)
        size = np.minimum(self._length, self._room)  # rows about to move have no room here
        move(readonly_bytes(self._data), self._start, size, data, start)
        self._data, self._start, self._end = data, start, end
