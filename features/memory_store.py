"""A feature store in this process's memory: the shipped fake, and the target of comparisons.

Knows rows as bytes, exactly as the online store keeps them. Does not know Redis or Feast.
Safe for threads. Nothing outlives the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa

from features.definitions import DEFINITIONS
from features.rows.aggregate import fold_events, group_by_entity, split_by_partition
from features.rows.byte_slices import ByteSlices
from features.rows.decode import FOREVER_MS, erased_until, tombstone
from features.rows.finalize import finalize_rows
from features.store import EntityName, FeatureFrame
from streams.bus.contract import Stamp


class MemoryFeatureStore:
    """`features.store.FeatureStore` over a dictionary."""

    def __init__(self) -> None:
        self._rows: dict[EntityName, dict[str, bytes]] = {name: {} for name in DEFINITIONS}
        self._lock = threading.Lock()

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        definition = DEFINITIONS[entity]
        batch = group_by_entity(definition, events)
        if len(parts := split_by_partition(events, batch)) > 1:
            return sum(self.fold(entity, part, stamp) for part in parts)
        with self._lock:
            stored = self._rows[entity]
            rows = ByteSlices.from_list([stored.get(entity_id) for entity_id in batch.ids])
            folded = fold_events(definition, rows, batch, stamp)
            for place, blob in zip(folded.changed, folded.rows.to_list(), strict=True):
                stored[batch.ids[place]] = blob
        return len(folded.changed)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        with self._lock:
            stored = self._rows[entity]
            blobs = [stored.get(entity_id) for entity_id in ids]
        return finalize_rows(DEFINITIONS[entity], ids, blobs, now_ms)

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        until = FOREVER_MS if at_ms is None else at_ms
        with self._lock:
            if erased_until(self._rows["user"].get(user_id)) < until:
                blob = tombstone(until, 0, DEFINITIONS["user"].fingerprint)
                self._rows["user"][user_id] = blob

    def healthy(self) -> bool:
        return True

    def ids(self, entity: EntityName) -> Iterator[str]:
        """Every id that has a row, tombstones included, unordered."""
        with self._lock:
            return iter(list(self._rows[entity]))
