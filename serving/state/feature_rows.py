"""Finalized feature rows of items and authors, kept for a moment so that requests share reads.

Knows the store, row numbers and when a row was read. Does not know requests or stages.

A row is served for at most `keep_ms` after it was read, so a feature reaches a slate that much
later than it reaches the store; its windows are those of the request's own time. Rows that requests
use are read again in the background once they are half as old, so that a request reads only rows
that no other one has used lately.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import numpy as np

from features.definitions import DEFINITIONS, TILE_SIZES_MS, EntityDefinition
from features.store import EntityName, FeatureFrame, FeatureStore, StoreDown
from serving.pipeline.frames import absent_rows
from serving.pipeline.items import RowNumbers

_LOG = logging.getLogger(__name__)
KEEP_MS = 1_000
_REFRESH_EVERY_MS = 250
_TILE_MS = min(size for size in TILE_SIZES_MS if size)
_NEVER_MS, _ALWAYS_MS = -(1 << 60), 1 << 60


@dataclass(frozen=True)
class _Columns:
    """Columns of R rows, each finalized at its own time. Writers replace rows under a lock."""

    definition: EntityDefinition
    read_ms: np.ndarray  # int64 [R]: the reader's time; `_NEVER_MS` for rows that were not read,
    #                      `_ALWAYS_MS` for the row of no entity, which is never read
    used_ms: np.ndarray  # int64 [R]: when a request last asked for the row
    status: np.ndarray  # uint8 [R]
    last_event_ms: np.ndarray  # int64 [R]
    counts: np.ndarray  # int64 [R, columns]
    lists: dict[str, np.ndarray]  # object [R]

    @staticmethod
    def empty(definition: EntityDefinition, rows: int) -> _Columns:
        lists = definition.columns[len(definition.count_columns) :]
        return _Columns(
            definition,
            np.full(rows, _NEVER_MS),
            np.full(rows, _NEVER_MS),
            np.zeros(rows, np.uint8),
            np.zeros(rows, np.int64),
            np.zeros((rows, len(definition.count_columns)), np.int64),
            {name: np.full(rows, None, object) for name in lists},
        )

    def grown(self, rows: int) -> _Columns:
        more, have = _Columns.empty(self.definition, rows), len(self.read_ms)
        more.read_ms[:have], more.used_ms[:have] = self.read_ms, self.used_ms
        more.status[:have] = self.status
        more.last_event_ms[:have], more.counts[:have] = self.last_event_ms, self.counts
        for name, values in self.lists.items():
            more.lists[name][:have] = values
        return more

    def put(self, rows: np.ndarray, frame: FeatureFrame, now_ms: int) -> None:
        self.status[rows], self.last_event_ms[rows] = frame.status, frame.last_event_ms
        names = self.definition.count_columns
        self.counts[rows] = np.column_stack([frame.columns[name] for name in names])
        for name, values in self.lists.items():
            values[rows] = frame.columns[name]
        self.read_ms[rows] = now_ms  # last: a reader takes the row from here on

    def frame(self, rows: np.ndarray, ids: tuple[str, ...]) -> FeatureFrame:
        counts = np.ascontiguousarray(self.counts[rows].T)
        columns = dict(zip(self.definition.count_columns, counts, strict=True))
        columns |= {name: values[rows] for name, values in self.lists.items()}
        return FeatureFrame(
            self.definition.name, ids, self.status[rows], self.last_event_ms[rows], columns
        )


class FeatureRows:
    """The rows of one entity by row number. Thread safe.

    numbers: what the rows mean; an id "" stands for none, and its row is always absent.
    """

    def __init__(
        self,
        store: FeatureStore,
        entity: EntityName,
        numbers: RowNumbers,
        *,
        keep_ms: int = KEEP_MS,
    ) -> None:
        self._store, self._entity, self._numbers, self._keep_ms = store, entity, numbers, keep_ms
        self._columns = _Columns.empty(DEFINITIONS[entity], 16)
        self._absent = absent_rows(entity, [""])
        self._lock = threading.Lock()
        self._refreshing, self._refreshed_ms = threading.Lock(), _NEVER_MS

    def kept(self, rows: np.ndarray, now_ms: int) -> FeatureFrame | None:
        """The rows at about `now_ms` (int64 [C], none unknown); None where one has to be read."""
        columns = self._columns
        if columns.definition is not DEFINITIONS[self._entity]:
            return None
        if len(rows) and rows.max() >= len(columns.read_ms):
            return None
        columns.used_ms[rows] = now_ms
        if not self._is_kept(columns, rows, now_ms).all():
            return None
        self._refresh_soon(now_ms)
        return columns.frame(rows, tuple(self._numbers.ids_of(rows)))

    def read(self, rows: np.ndarray, now_ms: int) -> FeatureFrame:
        """The rows, of which those that are not kept are read now, in one call.

        Raises:
            StoreDown: the store does not answer.
        """
        columns = self._room()
        missing = np.unique(rows[~self._is_kept(columns, rows, now_ms)])
        ids = self._numbers.ids_of(missing)
        order = [at for at, entity_id in sorted(enumerate(ids), key=lambda each: each[1])]
        named = [at for at in order if ids[at]]
        if named:
            frame = self._store.read(self._entity, [ids[at] for at in named], now_ms)
            with self._lock:
                columns = self._room_locked()
                columns.put(missing[named], frame, now_ms)
        if len(named) < len(ids):
            with self._lock:
                columns = self._room_locked()
                unnamed = missing[[at for at in order if not ids[at]]]
                columns.put(unnamed, self._absent, _ALWAYS_MS)
        return columns.frame(rows, tuple(self._numbers.ids_of(rows)))

    def _refresh_soon(self, now_ms: int) -> None:
        """Starts a refresh, unless one is running or has just run."""
        if now_ms - self._refreshed_ms < _REFRESH_EVERY_MS or not self._refreshing.acquire(False):
            return
        self._refreshed_ms = now_ms
        threading.Thread(
            target=self._refresh, args=(now_ms,), name=f"refresh-{self._entity}", daemon=True
        ).start()

    def _refresh(self, now_ms: int) -> None:
        """Reads rows again that are in use and that will soon be too old."""
        try:
            columns = self._columns
            in_use = now_ms - columns.used_ms < self._keep_ms
            aging = now_ms - columns.read_ms >= self._keep_ms // 2
            rows = np.flatnonzero(in_use & aging & (columns.read_ms > _NEVER_MS))
            rows = rows[rows < len(self._numbers)]
            if len(rows):
                frame = self._store.read(self._entity, self._numbers.ids_of(rows), now_ms)
                with self._lock:
                    self._room_locked().put(rows, frame, now_ms)
        except StoreDown as error:
            _LOG.debug("features are not refreshed: %s", error)  # requests will report it
        finally:
            self._refreshing.release()

    def _is_kept(self, columns: _Columns, rows: np.ndarray, now_ms: int) -> np.ndarray:
        """bool [C]: read within `keep_ms` of `now_ms`; of requests side by side, either is first."""
        read_ms = columns.read_ms[rows]
        near = np.abs(now_ms - read_ms) < self._keep_ms
        near &= read_ms // _TILE_MS == now_ms // _TILE_MS  # else a window counts other tiles now
        return np.asarray(near | (read_ms == _ALWAYS_MS))

    def _room(self) -> _Columns:
        with self._lock:
            return self._room_locked()

    def _room_locked(self) -> _Columns:
        """Columns of the declarations in force, with room for every row that has a number."""
        definition, size = DEFINITIONS[self._entity], len(self._numbers)
        if self._columns.definition is not definition:
            self._columns = _Columns.empty(definition, size * 5 // 4 + 16)
            self._absent = absent_rows(self._entity, [""])
        elif len(self._columns.read_ms) < size:
            self._columns = self._columns.grown(size * 5 // 4 + 16)
        return self._columns
