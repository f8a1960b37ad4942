"""Online rows compared with rows rebuilt from the log: each difference by entity, id, column.

Knows two stores that can be read. Does not repair anything: `features.offline.backfill` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName, FeatureFrame, FeatureStore, plain_values
from streams.event_log import EventLog
from streams.progress import ProgressCallback

READ_ROWS = 1_000


@dataclass(frozen=True)
class Difference:
    """One value that differs from the log's."""

    entity: EntityName
    entity_id: str
    column: str
    online: object
    rebuilt: object


def rebuild_in_memory(
    log: EventLog, progress: ProgressCallback = lambda _share, _what: None
) -> MemoryFeatureStore:
    """Folds the whole log in this process. Memory: every row, about 2 kB each."""
    store, total = MemoryFeatureStore(), sum(1 for _ in log.deliveries())
    for done, delivery in enumerate(log.deliveries(), start=1):
        for entity in DEFINITIONS:
            store.fold(entity, delivery.table, delivery.stamp)
        progress(min(1.0, done / total), f"{done:,} batches")
    return store


def diff_against_log(
    log_dir: Path,
    store: FeastFeatureStore,
    now_ms: int,
    progress: ProgressCallback = lambda _share, _what: None,
) -> Iterator[Difference]:
    """Every difference between the online rows and the log, both read at `now_ms`.

    Live folds continue meanwhile: let the consumers catch up first. Raises `StoreDown`.
    """
    rebuilt = rebuild_in_memory(EventLog(log_dir), progress)
    for entity in DEFINITIONS:
        ids = sorted({*rebuilt.ids(entity), *store.ids(entity)})
        for start in range(0, len(ids), READ_ROWS):
            yield from compare_stores(
                entity, ids[start : start + READ_ROWS], store, rebuilt, now_ms
            )


def compare_stores(
    entity: EntityName,
    ids: Sequence[str],
    online: FeatureStore,
    rebuilt: FeatureStore,
    now_ms: int,
) -> Iterator[Difference]:
    """Differences of these ids between two stores."""
    left, right = online.read(entity, ids, now_ms), rebuilt.read(entity, ids, now_ms)
    for column, (a, b) in _columns(left, right).items():
        for place, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                yield Difference(entity, ids[place], column, x, y)


def _columns(left: FeatureFrame, right: FeatureFrame) -> dict[str, tuple[list[object], ...]]:
    pairs = {"status": (left.status, right.status)}
    pairs["last_event_ms"] = (left.last_event_ms, right.last_event_ms)
    pairs |= {name: (column, right.columns[name]) for name, column in left.columns.items()}
    return {name: (plain_values(a), plain_values(b)) for name, (a, b) in pairs.items()}
