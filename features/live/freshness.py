"""Freshness: how far the stored rows lag behind the events, measured at live folds.

Knows the times that a fold records beside the rows. Does not know brokers: events that no fold
has seen yet are consumer lag.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import orjson
import pyarrow as pa

from features.definitions import DEFINITIONS
from features.store import EntityName, FeatureStore, StoreDown
from streams.metrics import FRESHNESS, LAST_FOLD

_SINCE = {"event": "event_time_ms", "admission": "ingested_at_ms"}


@runtime_checkable
class MetadataStore(Protocol):
    """A store that keeps small values beside its rows."""

    def put_metadata(self, name: str, value: bytes | None) -> None: ...

    def get_metadata(self, name: str) -> bytes | None: ...


@dataclass(frozen=True)
class Freshness:
    """One entity's last live fold. Times are of the stack clock, in ms."""

    entity: EntityName
    ingested_at_ms: int  # admission of the newest event in the last batch
    folded_at_ms: int

    @property
    def lag_ms(self) -> int:
        """From admission to readable, for the newest event of the last batch."""
        return max(0, self.folded_at_ms - self.ingested_at_ms)


def record_fold(
    store: FeatureStore, entity: EntityName, ingested_at_ms: int, folded_at_ms: int
) -> None:
    """Stores the last fold's times. The rows are written by then: a failure loses no event."""
    if not isinstance(store, MetadataStore):
        return
    try:
        store.put_metadata(f"fresh:{entity}", orjson.dumps([ingested_at_ms, folded_at_ms]))
    except StoreDown:
        return


def measure_freshness(entity: EntityName, events: pa.Table, readable_at_ms: int) -> None:
    """Exports the age of each event as its row became readable, in seconds of the stack clock."""
    for since, column in _SINCE.items():
        age_ms = readable_at_ms - events.column(column).to_numpy().astype(np.int64)
        FRESHNESS.observe(np.maximum(age_ms, 0) / 1e3, entity, since)
    LAST_FOLD.labels(entity).set(time.time())


def read_freshness(store: MetadataStore) -> list[Freshness]:
    """One entry per entity that was ever folded live. Raises `StoreDown`."""
    found = ((entity, store.get_metadata(f"fresh:{entity}")) for entity in DEFINITIONS)
    return [Freshness(entity, *orjson.loads(raw)) for entity, raw in found if raw is not None]
