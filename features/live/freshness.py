"""How far the stored rows lie behind the events: counted at the streaming writes themselves.

Knows what a fold notes beside the rows. Does not know brokers: what no fold has seen
yet is the consumer's lag, not freshness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import orjson

from features.definitions import DEFINITIONS
from features.store import EntityName, FeatureStore, StoreDown


@runtime_checkable
class Notebook(Protocol):
    """A store that keeps small facts beside its rows."""

    def note(self, name: str, value: bytes | None) -> None: ...

    def noted(self, name: str) -> bytes | None: ...


@dataclass(frozen=True)
class Freshness:
    """One entity's last streaming write. Times are of the stack clock, in ms."""

    entity: EntityName
    ingested_at_ms: int  # admission of the newest event in the last batch
    folded_at_ms: int

    @property
    def lag_ms(self) -> int:
        """From admission to readable, for the newest event of the last batch."""
        return max(0, self.folded_at_ms - self.ingested_at_ms)


def note_fold(
    store: FeatureStore, entity: EntityName, ingested_at_ms: int, folded_at_ms: int
) -> None:
    """Keeps the last write's times. The rows are written: a failure here loses no event."""
    if not isinstance(store, Notebook):
        return
    try:
        store.note(f"fresh:{entity}", orjson.dumps([ingested_at_ms, folded_at_ms]))
    except StoreDown:
        return


def freshness(store: Notebook) -> list[Freshness]:
    """One entry per entity that was ever folded live."""
    found = ((entity, store.noted(f"fresh:{entity}")) for entity in DEFINITIONS)
    return [Freshness(entity, *orjson.loads(raw)) for entity, raw in found if raw is not None]
