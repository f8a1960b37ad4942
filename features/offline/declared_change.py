"""What a changed declaration costs, said before it is done: columns, bytes per row, a rebuild.

Knows two declarations and the event log. Does not rebuild (`features.offline.backfill`) and does
not know the online store. Bytes are measured on a sample of the log, and so is the duration where
no rebuild of this log was measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa

from features.declarations import Count, LastN, Sum
from features.definitions import EntityDefinition
from features.rows.aggregate import fold_events, group_by_entity
from features.rows.byte_slices import ByteSlices
from features.store import EntityName
from features.stored_declaration import Declaration
from streams.bus.contract import Stamp
from streams.contract.declaration import declared
from streams.contract.schema import EVENT_SCHEMA, conform, with_added_columns
from streams.contract.signals import Signals
from streams.contract.topics import entity_topic
from streams.event_log import EventLog

SAMPLE_EVENTS = 50_000
RATE_FILE = "rebuild.json"  # beside the log: how fast its last rebuild was


@dataclass(frozen=True)
class NameChanges:
    """Names that one declaration has and another has not, or has otherwise."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: Mapping[str, object], after: Mapping[str, object]) -> NameChanges:
        return cls(
            tuple(name for name in after if name not in before),
            tuple(name for name in before if name not in after),
            tuple(n for n, value in after.items() if n in before and before[n] != value),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        parts = ("+", self.added), ("-", self.removed), ("~", self.changed)
        return ", ".join(f"{sign}{name}" for sign, names in parts for name in names)


@dataclass(frozen=True)
class RebuildCost:
    """What a rebuild of every row reads, and about how long it takes."""

    events: int  # in the log
    rows: Mapping[EntityName, int]  # about; counted from the log's ids
    sample_events: int
    bytes_before: Mapping[EntityName, float]  # per row of the sample
    bytes_after: Mapping[EntityName, float]
    events_per_s: float
    measured: bool  # by a rebuild of this log; else by folding the sample, without the store

    @property
    def seconds(self) -> float:
        return self.events / self.events_per_s if self.events_per_s else 0.0

    def __str__(self) -> str:
        """One line."""
        if not self.events:
            return "the log is empty: nothing to rebuild"
        size = (
            f"a rebuild reads {self.events:,} events and writes about {sum(self.rows.values()):,} "
            "rows: "
        )
        if self.measured:
            return f"{size}about {self.seconds:,.0f} s, as fast as the last one"
        return (
            f"{size}at least {self.seconds:,.0f} s, by the fold of a sample; reading the log and "
            "writing to the store come on top"
        )


@dataclass(frozen=True)
class DeclaredChange:
    """How the declaration in force differs from the one before.

    `features` has the entities whose features differ; `rebuilt` says whether stored rows do.
    `entities` are the owner's own.
    """

    signals: NameChanges
    features: Mapping[EntityName, NameChanges]
    rebuilt: bool
    entities: NameChanges = field(default_factory=NameChanges)

    def __bool__(self) -> bool:
        return bool(self.signals or self.features)

    def __str__(self) -> str:
        """One line."""
        named = [f"signals {self.signals}"] if self.signals else []
        return "; ".join([*named, *(f"{name} {each}" for name, each in self.features.items())])


def compared(before: Declaration, after: Declaration) -> DeclaredChange:
    """Compares two declarations by name."""
    old, new = before.definitions(), after.definitions()
    signals = (
        {each.name: each for each in declaration.contract.signals.declared}
        for declaration in (before, after)
    )
    every = dict.fromkeys((*new, *old))
    features = {
        entity: NameChanges.between(
            *(_named(each[entity]) if entity in each else {} for each in (old, new))
        )
        for entity in every
    }
    return DeclaredChange(
        NameChanges.between(*signals),
        {entity: each for entity, each in features.items() if each},
        _fingerprints(old) != _fingerprints(new),
        NameChanges.between(old, new),
    )


def topics_line(change: DeclaredChange, partitions: int) -> str:
    """What more or fewer entities mean for the broker, in one line; "" where they are the same."""
    added, removed = change.entities.added, change.entities.removed
    parts = [
        f"one more internal topic, {entity_topic(entity)}, of {partitions} partitions, with each of "
        "its events once more for 7 days, and one more reader of events.by_user"
        for entity in added
    ]
    parts += [f"{entity_topic(entity)} is written no longer; delete it" for entity in removed]
    return "; ".join(parts)


def _fingerprints(definitions: Mapping[EntityName, EntityDefinition]) -> dict[EntityName, int]:
    return {entity: definition.fingerprint for entity, definition in definitions.items()}


def _named(definition: EntityDefinition) -> dict[str, object]:
    """Feature by name: of a count or sum without its window, of a list its column."""
    counters = {each.stem: each for each in definition.counters if isinstance(each, Count | Sum)}
    lists: dict[str, LastN] = {each.column: each for each in definition.lists}
    return {**counters, **lists, **{each.name: each for each in definition.derived}}


def rebuild_cost(
    log_dir: Path, before: Declaration, after: Declaration, sample_events: int = SAMPLE_EVENTS
) -> RebuildCost:
    """Reads the log's ids and folds its first `sample_events` by both declarations.

    Memory: the sample's events and rows.
    """
    log = EventLog(log_dir)
    events, rows = _log_size(log, after)
    sample = _sample(log, sample_events)
    if sample is None:
        return RebuildCost(events, rows, 0, {}, {}, 0.0, measured=False)
    bytes_before, _ = _folded(sample, before)
    bytes_after, seconds = _folded(sample, after)
    rate = _measured_rate(log_dir)
    return RebuildCost(
        events,
        rows,
        sample.num_rows,
        bytes_before,
        bytes_after,
        rate or sample.num_rows / max(seconds, 1e-9),
        measured=rate is not None,
    )


def _log_size(log: EventLog, after: Declaration) -> tuple[int, dict[EntityName, int]]:
    """Events in the log, duplicates included, and about how many rows they give each entity."""
    definitions = after.definitions()

    def counted(scan: pl.LazyFrame) -> pl.DataFrame:
        have = scan.collect_schema().names()
        ids = {
            entity: _ids(each, after.contract.signals) if each.id_column in have else pl.lit(None)
            for entity, each in definitions.items()
        }
        distinct = [
            each.drop_nulls().approx_n_unique().alias(entity) for entity, each in ids.items()
        ]
        return scan.select(pl.len().alias("events"), *distinct).collect()

    found = log.segments.read_consistently(counted).row(0, named=True)
    return found["events"], {entity: found[entity] for entity in definitions}


def _ids(definition: EntityDefinition, signals: Signals) -> pl.Expr:
    """The ids of the log's events that have a row of the entity; null for others."""
    ids = pl.col(definition.id_column)
    if definition.kinds is None:
        return ids
    return pl.when(pl.col("kind").is_in([signals.number[kind] for kind in definition.kinds])).then(
        ids
    )


def _sample(log: EventLog, events: int) -> pa.Table | None:
    tables, held = [], 0
    for delivery in log.deliveries():
        tables.append(delivery.table)
        held += delivery.table.num_rows
        if held >= events:
            break
    return pa.concat_tables(tables).slice(0, events) if held else None


def _folded(sample: pa.Table, declaration: Declaration) -> tuple[dict[EntityName, float], float]:
    """Mean bytes of the sample's rows by entity, and the seconds that folding it took."""
    found: dict[EntityName, float] = {}
    with declared(declaration.contract):
        events = conform(sample, with_added_columns(EVENT_SCHEMA, declaration.contract.signals))
        definitions = declaration.definitions()
        _rows(definitions["query"], events.slice(0, 1))  # loads the compiled code
        started = time.perf_counter()
        for entity, definition in definitions.items():
            rows = _rows(definition, events)
            found[entity] = float(rows.lengths.mean()) if len(rows) else 0.0
        return found, time.perf_counter() - started


def _rows(definition: EntityDefinition, events: pa.Table) -> ByteSlices:
    batch = group_by_entity(definition, events)
    empty = ByteSlices.from_list([None] * len(batch.names))
    return fold_events(definition, empty, batch, Stamp("sample", 0, 0)).rows


def write_rate(log_dir: Path, events: int, seconds: float) -> None:
    """Keeps how fast a rebuild was. A log that cannot be written to goes without."""
    if events < SAMPLE_EVENTS or seconds <= 0:
        return  # too short to say how long a long one takes
    with suppress(OSError):
        (log_dir / RATE_FILE).write_bytes(orjson.dumps({"events": events, "seconds": seconds}))


def _measured_rate(log_dir: Path) -> float | None:
    """Events per second of the last rebuild; None: none was long enough, or was measured."""
    with suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        body = orjson.loads((log_dir / RATE_FILE).read_bytes())
        return float(body["events"] / body["seconds"])
    return None
