"""A feature store in this process's memory: the shipped fake, and what backfills fold into.

Knows rows as bytes, exactly as the online store keeps them. Does not know Redis or
Feast. Safe for several threads. Nothing is kept when the process ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa

from features.definitions import DEFINITIONS
from features.kernels.layout import FOREVER_MS, erased_until, tombstone
from features.rows.aggregate import apart, fold, group
from features.rows.byte_slices import Spans
from features.rows.finalize import finish_blobs
from features.store import EntityName, FeatureFrame
from streams.bus.contract import Stamp


class MemoryFeatureStore:
    """`features.store.FeatureStore` over a dictionary."""

    def __init__(self) -> None:
        self._rows: dict[EntityName, dict[str, bytes]] = {name: {} for name in DEFINITIONS}
        self._lock = threading.Lock()

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        definition = DEFINITIONS[entity]
        batch = group(definition, events)
        if len(parts := apart(events, batch)) > 1:
            return sum(self.fold(entity, part, stamp) for part in parts)
        with self._lock:
            stored = self._rows[entity]
            rows = Spans.of([stored.get(entity_id) for entity_id in batch.ids])
            folded = fold(definition, rows, batch, stamp)
            for place, blob in zip(folded.changed, folded.rows.to_list(), strict=True):
                stored[batch.ids[place]] = blob
        return len(folded.changed)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        with self._lock:
            stored = self._rows[entity]
            blobs = [stored.get(entity_id) for entity_id in ids]
        return finish_blobs(DEFINITIONS[entity], ids, blobs, now_ms)

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        until = FOREVER_MS if at_ms is None else at_ms
        with self._lock:
            if erased_until(self._rows["user"].get(user_id)) < until:
                blob = tombstone(until, 0, DEFINITIONS["user"].fingerprint)
                self._rows["user"][user_id] = blob

    def healthy(self) -> bool:
        return True

    def ids(self, entity: EntityName) -> Iterator[str]:
        """Every id that has a row, tombstones included, in no order."""
        with self._lock:
            return iter(list(self._rows[entity]))
