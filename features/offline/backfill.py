"""Rows rebuilt from the event log by the same kernel: chunked, resumable, exact beside live folds.

Knows the log, chunks and the cut between what it counts and what live folds count. Does
not know Faust. Memory: one chunk of events and the rows that it touches.

A backfill begins a new generation with a `Cut` at what the log holds now. It folds the
log up to the cut; live folds, started again under the new generation from their topics'
start, count what lies beyond it. So a row ends the same whoever of the two comes first,
and nothing is missed or counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa

from features.definitions import DEFINITIONS
from features.online.rebuild_cutoff import Cut
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName
from streams.bus.contract import Stamp
from streams.event_log import EventLog

CHUNK_ROWS = 400_000  # fewer, and a row is read and written again more often than it has events
_NOTE = "backfill"
_WHOLE = "whole"  # of which epochs; kept beside the rows: an emptied store has lost it too

Progress = Callable[[float, str], None]
"""Called with the share done in [0, 1] and what is being done."""

Place = tuple[str, int, int]
"""(epoch, partition, offset) of a batch in the log."""


@dataclass(frozen=True)
class Live:
    """The topics that live folds read now: partitions, and the epoch of each entity's topic."""

    partitions: int
    epochs: Mapping[EntityName, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BackfillReport:
    generation: int
    events: int  # folded by this call; a resumed one folds the rest
    rows: int  # rows written, over all entities and chunks
    swept: int  # rows of the old generation that no event of the log supports
    resumed: bool


@dataclass
class _Plan:
    """What a backfill has undertaken, kept beside the rows until it is done."""

    generation: int
    bounds: dict[tuple[str, int], int]  # (epoch, partition) -> last offset to fold
    total: int
    done: int = 0  # chunks
    done_events: int = 0
    last: Place | None = None  # end of the chunk last done
    end: Place | None = None  # end of the chunk begun, so that it is made the same again

    def to_json(self) -> bytes:
        bounds = [[epoch, partition, last] for (epoch, partition), last in self.bounds.items()]
        return orjson.dumps(self.__dict__ | {"bounds": bounds})

    @classmethod
    def from_json(cls, raw: bytes) -> _Plan:
        body = orjson.loads(raw)
        body["bounds"] = {(epoch, partition): last for epoch, partition, last in body["bounds"]}
        for name in ("last", "end"):
            body[name] = None if body[name] is None else tuple(body[name])
        return cls(**body)


def backfill(
    log_dir: Path,
    store: FeastFeatureStore,
    *,
    live: Live | None = None,
    progress: Progress = lambda _share, _what: None,
    chunk_rows: int = CHUNK_ROWS,
    resume: bool = True,
) -> BackfillReport:
    """Rebuilds every entity's rows from the log; goes on where an unfinished one stopped.

    Folding processes notice the new generation, end, and must be started again (the
    stack's supervisor does). `live` names the topics that they read; None when there
    is no broker, or a new one whose topics hold nothing of the log.

    Raises:
        StoreDown: the store went away; call again to go on.
        GenerationChanged: the store was emptied or another rebuild began meanwhile.
    """
    log = EventLog(log_dir)
    plan, resumed = _unfinished(store) if resume else None, True
    if plan is None:
        plan, resumed = _begin(log, store, live), False
    events = rows = 0
    for chunk, end in _chunks(log, plan, chunk_rows):
        plan.end = end
        store.note(_NOTE, plan.to_json())
        rows += _fold_chunk(store, chunk, plan)
        events += chunk.num_rows
        plan.done, plan.last, plan.end = plan.done + 1, end, None
        plan.done_events += chunk.num_rows
        store.note(_NOTE, plan.to_json())
        progress(min(1.0, plan.done_events / max(1, plan.total)), f"{plan.done_events:,} events")
    swept = sum(store.sweep(entity) for entity in DEFINITIONS)
    store.note(_NOTE, None)
    progress(1.0, f"{plan.done_events:,} events")
    return BackfillReport(plan.generation, events, rows, swept, resumed)


def ensure_whole(
    log_dir: Path, store: FeastFeatureStore, live: Live, *, progress: Progress
) -> BackfillReport | None:
    """Rebuilds a store that is new, was emptied or was left half rebuilt; None for a whole one.

    Whole is a store for the topics that it was filled from: when they are made anew, what
    the old ones held and no fold had seen is in the log alone. For the process that folds,
    before it begins: the store is a cache of the log.
    """
    epochs = orjson.dumps(dict(sorted(live.epochs.items())))
    if store.noted(_WHOLE) == epochs:
        return None
    report = backfill(log_dir, store, live=live, progress=progress)
    store.note(_WHOLE, epochs)
    return report


def _unfinished(store: FeastFeatureStore) -> _Plan | None:
    """The plan that an earlier call left, if the store is still of its generation."""
    raw = store.noted(_NOTE)
    if raw is None:
        return None
    plan = _Plan.from_json(raw)
    if store.stored_generation() != plan.generation or not store.follows_declarations():
        return None
    store.generation()
    return plan


def _begin(log: EventLog, store: FeastFeatureStore, live: Live | None) -> _Plan:
    extent = _extent(log)
    bounds = {
        (epoch, partition): last
        for epoch, partition, last in extent.group_by("epoch", "partition")
        .agg(pl.col("offset").max())
        .sort("epoch", "partition")
        .iter_rows()
    }
    cut = Cut() if live is None else _cut(extent, live)
    generation = store.begin_generation(cut)
    plan = _Plan(generation, bounds, int(extent["events"].sum()))
    store.note(_NOTE, plan.to_json())
    return plan


def _extent(log: EventLog) -> pl.DataFrame:
    """Per (epoch, partition, source partition): last offsets and how many events.

    Taken batch by batch in offset order, so the bounds and the cut speak of one moment.
    """
    parts = [_batch_extent(d.stamp, d.table) for d in log.deliveries()]
    empty = {
        "epoch": pl.String,
        "partition": pl.Int64,
        "source_partition": pl.Int32,
        "offset": pl.Int64,
        "source_offset": pl.Int64,
        "events": pl.UInt32,
    }
    frame = pl.concat([pl.DataFrame(schema=empty), *parts])
    keys = ["epoch", "partition", "source_partition"]
    return frame.group_by(keys).agg(pl.col("offset", "source_offset").max(), pl.col("events").sum())


def _batch_extent(stamp: Stamp, table: pa.Table) -> pl.DataFrame:
    frame = pl.DataFrame(table.select(["source_partition", "source_offset"]))
    return frame.group_by("source_partition").agg(
        pl.col("source_offset").max(), events=pl.len()
    ).select(
        epoch=pl.lit(stamp.epoch),
        partition=pl.lit(stamp.partition, pl.Int64),
        source_partition="source_partition",
        offset=pl.lit(stamp.offset, pl.Int64),
        source_offset="source_offset",
        events="events",
    )  # fmt: skip


def _cut(extent: pl.DataFrame, live: Live) -> Cut:
    """The cut at the log's part of the epoch that the broker is in now."""
    now = extent.filter(pl.col("epoch") == live.epochs.get("user", ""))
    columns = now.select("partition", "source_partition", "source_offset").iter_rows()
    offsets = {(partition, source): offset for partition, source, offset in columns}
    return Cut(live.partitions, live.epochs, offsets)


def _chunks(log: EventLog, plan: _Plan, rows: int) -> Iterator[tuple[pa.Table, Place]]:
    """The rest of the plan in chunks, each with the place of its last batch."""
    tables: list[pa.Table] = []
    held, place = 0, None
    for stamp, table in _batches(log, plan):
        place = (stamp.epoch, stamp.partition, stamp.offset)
        tables.append(table)
        held += table.num_rows
        if (held >= rows and plan.end is None) or place == plan.end:
            yield pa.concat_tables(tables), place
            tables, held, place = [], 0, None
    if place is not None:
        yield pa.concat_tables(tables), place


def _batches(log: EventLog, plan: _Plan) -> Iterator[tuple[Stamp, pa.Table]]:
    """The log's batches after the last chunk done and within the plan's bounds, in order."""
    for delivery in log.deliveries():
        stamp = delivery.stamp
        place = (stamp.epoch, stamp.partition, stamp.offset)
        if plan.last is not None and place <= plan.last:
            continue
        if stamp.offset <= plan.bounds.get((stamp.epoch, stamp.partition), -1):
            yield stamp, delivery.table


def _fold_chunk(store: FeastFeatureStore, chunk: pa.Table, plan: _Plan) -> int:
    stamp = Stamp(f"backfill {plan.generation}", 0, plan.done)
    return sum(store.fold(entity, chunk, stamp) for entity in DEFINITIONS)
