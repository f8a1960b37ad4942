"""Freshness: how far the stored rows lag behind the events, measured at live folds.

Knows the times that a fold records beside the rows. Does not know brokers: events that no fold
has seen yet are consumer lag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import orjson

from features.definitions import DEFINITIONS
from features.store import EntityName, FeatureStore, StoreDown


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


def read_freshness(store: MetadataStore) -> list[Freshness]:
    """One entry per entity that was ever folded live. Raises `StoreDown`."""
    found = ((entity, store.get_metadata(f"fresh:{entity}")) for entity in DEFINITIONS)
    return [Freshness(entity, *orjson.loads(raw)) for entity, raw in found if raw is not None]
