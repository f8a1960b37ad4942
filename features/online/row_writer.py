"""Writes of stored rows: folds a batch into them, by lease or by compare-and-set.

Knows the row cache, leases and conflicts. Does not know how a row is folded
(`features.rows.aggregate`) nor Redis commands (`features.online.compare_and_set`).

A process that caches rows holds a lease on their entity. Rows that it has read or written
under the lease are written without comparing; the others are compared and set. Any other
writer invalidates the lease in the step in which it writes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from features.definitions import DEFINITIONS
from features.online.compare_and_set import (
    COMPARE_AND_SET_SCRIPT,
    DELETE_IF_UNCHANGED_SCRIPT,
    CompareAndSet,
    unconditional_sets,
)
from features.online.connection import Script
from features.online.lease import Leases
from features.online.rebuild import RebuildState
from features.online.row_cache import EntityIds, RowCache
from features.online.row_reader import RowReader, batched
from features.rows.aggregate import EventBatch, FoldedRows, PreparedFold, StoredRows
from features.rows.byte_slices import ByteSlices
from features.rows.decode import digests
from features.store import DefinitionChanged, EntityName, StoreDown
from streams.bus.contract import Stamp

ATTEMPTS = 32  # a conflict means that another writer made progress: 32 in a row are no accident
SCRIPT_ROWS = 128  # rows per script call: more than the server's CPU caches hold is slower
READ_ROWS = 1024  # rows per read request
BATCH_BYTES = 4 << 20  # of rows folded together: bounds memory for any batch size
BATCH_ROWS = range(512, 8_192)  # fewer cost more than they save, more leave the CPU caches
INITIAL_ROW_BYTES = 4_096  # assumed size of a row before the first fold
CALLS_IN_FLIGHT = 32  # calls sent before their replies are read: bounds memory


class RowWriter:
    """Folds into the rows of one project. Safe for threads; one fold at a time per entity."""

    def __init__(self, reader: RowReader, rebuild: RebuildState, cache: RowCache) -> None:
        connection = reader.connection
        self._reader, self._rebuild, self._cache = reader, rebuild, cache
        self._formats = reader.formats
        self._compare_and_set_script = Script(connection, COMPARE_AND_SET_SCRIPT)
        self._delete_script = Script(connection, DELETE_IF_UNCHANGED_SCRIPT)
        self._leases = Leases(connection, reader.metadata_key, cache)
        self._locks = {name: threading.Lock() for name in DEFINITIONS}
        self._row_bytes = dict.fromkeys(DEFINITIONS, float(INITIAL_ROW_BYTES))

    def fold(self, entity: EntityName, batch: EventBatch, stamp: Stamp) -> int:
        """Folds the batch into its entities' rows; returns the number of rows written.

        Raises:
            DefinitionChanged: a stored row follows other declarations.
            RebuildIdChanged: the store was emptied or rebuilt since this process started.
            StoreDown: the store does not answer, or other writers won every attempt.
        """
        rebuild_id = self._rebuild.rebuild_id()
        prepared = PreparedFold(DEFINITIONS[entity], batch, stamp, rebuild_id)
        ids = EntityIds.of(batch.names)
        n, step = len(ids.keys), self._batch_rows(entity)
        with self._locks[entity]:
            self._leases.acquire(entity, self._formats[entity].lease_key, rebuild_id)
            parts = (np.arange(a, min(a + step, n)) for a in range(0, n, step))
            return sum(self._fold_rows(entity, prepared, ids, places) for places in parts)

    def compare_and_set(
        self,
        packer: CompareAndSet,
        ids: ByteSlices,
        expected_digest: np.ndarray,
        rows: ByteSlices,
        times: np.ndarray,
    ) -> tuple[list[int], bool]:
        """Writes each row whose stored digest is the expected one.

        Args:
            expected_digest: uint64 [N]; 0: no row is stored.
            times: event times, int64 [N], ms.

        Returns: the places of the rows that lost, ascending, and whether the lease that
            `packer` names is still held.
        """
        lost: list[int] = []
        start, owned = 0, True
        packed = packer.calls(ids, expected_digest, rows, times, SCRIPT_ROWS)
        for calls in batched(packed, CALLS_IN_FLIGHT):
            replies = self._compare_and_set_script.run_all(calls)
            if [-1] in replies:
                raise self._rebuild.changed(self._rebuild.stored_rebuild_id())
            for owns, *places in replies:
                owned = owned and bool(owns)
                lost += [start + place for place in places]
                start += SCRIPT_ROWS
        return lost, owned

    def delete_unchanged(
        self, entity: EntityName, ids: Sequence[str], rows: Sequence[bytes | None]
    ) -> int:
        """Deletes these ids' rows if they are still `rows`; returns how many were deleted."""
        layout = self._formats[entity]
        keys = [layout.lease_key, *map(layout.key, ids)]
        expected = [digest.tobytes() for digest in digests(ByteSlices.from_list(rows))]
        deleted: int = self._delete_script(keys, [layout.row_field, *expected])
        return deleted

    def _batch_rows(self, entity: EntityName) -> int:
        rows = int(BATCH_BYTES / self._row_bytes[entity])
        return min(max(rows, BATCH_ROWS.start), BATCH_ROWS.stop)

    def _fold_rows(
        self, entity: EntityName, prepared: PreparedFold, ids: EntityIds, places: np.ndarray
    ) -> int:
        """Folds into the rows at `places` (int64 [K]), again into those that lost a conflict."""
        written = 0
        for _ in range(ATTEMPTS):
            stored, owned = self._stored_rows(entity, ids, places)
            folded = prepared.fold_into(places, stored)
            if folded.foreign_rows:
                raise DefinitionChanged(
                    f"stored {entity} rows follow other declarations than this code; run "
                    "`tidemill features backfill --rebuild`"
                )
            owned = owned[np.searchsorted(places, folded.changed)]
            lost = self._write_changed(entity, ids, folded, owned)
            written += len(folded.changed) - len(lost)
            if not len(lost):
                return written
            places = lost
        raise StoreDown(f"{len(places)} {entity} rows lost every compare-and-set; fold again")

    def _stored_rows(
        self, entity: EntityName, ids: EntityIds, places: np.ndarray
    ) -> tuple[StoredRows, np.ndarray]:
        """The rows at `places` from the cache or the store, and which of them (bool [K]) were
        read or written under the lease held now."""
        keys, checks = ids.keys[places], ids.checks[places]
        cached, start, size, sequence = self._cache.find(entity, keys, checks)
        lease = self._leases.held(entity)
        owned = sequence >= lease.since if lease else np.zeros(len(places), bool)
        missing = np.flatnonzero(size == 0)
        read: list[bytes | None] = []
        for chunk in batched(missing.tolist(), READ_ROWS):
            rows, stored_rebuild_id = self._reader.read(entity, ids.text(places[chunk]))
            if stored_rebuild_id != self._rebuild.rebuild_id():
                raise self._rebuild.changed(stored_rebuild_id)
            read += rows
        found = ByteSlices.from_list(read)
        start[missing], size[missing] = len(cached) + found.offsets[:-1], found.lengths
        owned[missing] = lease is not None
        return StoredRows(cached, found.data, start, size), owned

    def _write_changed(
        self, entity: EntityName, ids: EntityIds, folded: FoldedRows, owned: np.ndarray
    ) -> np.ndarray:
        """Writes and caches the changed rows; returns the places of those that lost."""
        changed, rows = folded.changed, folded.rows
        if not len(changed):
            return changed
        self._row_bytes[entity] = len(rows.data) / len(rows)
        keys, checks, names = ids.keys[changed], ids.checks[changed], ids.ids
        if len(changed) < len(names):
            names = names.take(changed)
        try:
            lost = self._write(entity, names, folded, owned)
        except BaseException:
            self._leases.invalidate(entity)  # which rows were written is unknown
            raise
        self._cache.put(entity, keys, checks, rows)
        self._cache.drop(entity, keys[lost])
        return changed[lost]

    def _write(
        self, entity: EntityName, ids: ByteSlices, folded: FoldedRows, owned: np.ndarray
    ) -> list[int]:
        """Writes owned rows without comparing while the lease is held, the others by
        compare-and-set; returns the places, ascending, of those that lost."""
        layout, rows, times = self._formats[entity], folded.rows, folded.last_event_ms
        plain = np.flatnonzero(owned)
        sets = unconditional_sets(layout, *_select(plain, ids, rows, times))
        n = self._leases.write(entity, sets)
        if n == len(ids):
            return []
        rest = np.delete(np.arange(len(ids)), plain[:n])
        lease = self._leases.held(entity)
        packer = CompareAndSet(
            layout,
            self._reader.metadata_key,
            self._rebuild.rebuild_id(),
            lease.token if lease else b"",
        )
        names, rows, times = _select(rest, ids, rows, times)
        expected = folded.expected_digest[rest]
        lost, still_held = self.compare_and_set(packer, names, expected, rows, times)
        if not still_held:
            self._leases.invalidate(entity)
        places: list[int] = rest[lost].tolist()
        return places


def _select(
    places: np.ndarray, ids: ByteSlices, rows: ByteSlices, times: np.ndarray
) -> tuple[ByteSlices, ByteSlices, np.ndarray]:
    if len(places) == len(ids):
        return ids, rows, times
    return ids.take(places), rows.take(places), times[places]
