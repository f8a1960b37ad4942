"""Backfill: rows rebuilt from the event log by the same fold, in chunks, resumable.

Knows the log, chunks and the cutoff between what it counts and what live folds count. Does not
know Faust. Memory: one chunk of events and the rows that it touches.

A backfill starts a rebuild whose `RebuildCutoff` is the log's current end, and folds the log up
to it. Live folds restart under the new rebuild id, from their topics' start, and count what is
after the cutoff. A row therefore ends the same in whichever order the two reach it, and no
event is missed or counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa

from features.definitions import DEFINITIONS
from features.offline.declared_change import write_rate
from features.online.rebuild_cutoff import RebuildCutoff
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName
from streams.bus.contract import Stamp
from streams.event_log import EventLog
from streams.progress import ProgressCallback

CHUNK_ROWS = 400_000  # with fewer, rows are rewritten more often than they have events
# Metadata fields, stored beside the rows: an emptied store has lost them too.
_PLAN = "backfill"
_FILLED_FROM = "whole"  # the topic ids that a complete store was filled from


LogPosition = tuple[str, int, int]
"""(topic id, partition, offset) of a batch in the log."""


@dataclass(frozen=True)
class LiveTopics:
    """The topics that live folds read: partition count, and the id of each entity's topic."""

    partitions: int
    topic_ids: Mapping[EntityName, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BackfillReport:
    """What one call of `backfill` did."""

    rebuild_id: int
    events: int  # folded by this call; a resumed call folds the rest
    rows: int  # rows written, over all entities and chunks
    swept: int  # rows of the old rebuild id that no event of the log supports
    resumed: bool


@dataclass
class _BackfillPlan:
    """The state of an unfinished backfill, stored beside the rows."""

    rebuild_id: int
    bounds: dict[tuple[str, int], int]  # (topic id, partition) -> last offset to fold
    total: int  # events
    done: int = 0  # chunks
    done_events: int = 0
    last: LogPosition | None = None  # end of the last finished chunk
    end: LogPosition | None = None  # end of the started chunk, so that a resume repeats it exactly

    def to_json(self) -> bytes:
        bounds = [
            [topic_id, partition, last] for (topic_id, partition), last in self.bounds.items()
        ]
        body = self.__dict__ | {"bounds": bounds}
        return orjson.dumps({"generation": body.pop("rebuild_id"), **body})

    @classmethod
    def from_json(cls, raw: bytes) -> _BackfillPlan:
        body = orjson.loads(raw)
        body["rebuild_id"] = body.pop("generation")
        body["bounds"] = {
            (topic_id, partition): last for topic_id, partition, last in body["bounds"]
        }
        for name in ("last", "end"):
            body[name] = None if body[name] is None else tuple(body[name])
        return cls(**body)


def backfill(
    log_dir: Path,
    store: FeastFeatureStore,
    *,
    live: LiveTopics | None = None,
    progress: ProgressCallback = lambda _share, _what: None,
    chunk_rows: int = CHUNK_ROWS,
    resume: bool = True,
) -> BackfillReport:
    """Rebuilds every entity's rows from the log; resumes an unfinished backfill.

    Folding processes detect the new rebuild id, exit, and must be restarted (the stack's
    supervisor does that).

    Args:
        live: the topics that live folds read; None when there is no broker, or when its topics
            hold nothing of the log.
        chunk_rows: events in memory at once.

    Raises:
        StoreDown: the store does not answer; call again to resume.
        RebuildIdChanged: the store was emptied or another rebuild started meanwhile.
    """
    log = EventLog(log_dir)
    plan, resumed = _unfinished_plan(store) if resume else None, True
    if plan is None:
        plan, resumed = _start_plan(log, store, live), False
    events, rows, started = 0, 0, time.perf_counter()
    for chunk, end in _chunks(log, plan, chunk_rows):
        plan.end = end
        store.put_metadata(_PLAN, plan.to_json())
        rows += _fold_chunk(store, chunk, plan)
        events += chunk.num_rows
        plan.done, plan.last, plan.end = plan.done + 1, end, None
        plan.done_events += chunk.num_rows
        store.put_metadata(_PLAN, plan.to_json())
        progress(min(1.0, plan.done_events / max(1, plan.total)), f"{plan.done_events:,} events")
    swept = sum(store.sweep(entity) for entity in DEFINITIONS)
    store.put_metadata(_PLAN, None)
    write_rate(log_dir, events, time.perf_counter() - started)
    progress(1.0, f"{plan.done_events:,} events")
    return BackfillReport(plan.rebuild_id, events, rows, swept, resumed)


def ensure_rebuilt(
    log_dir: Path, store: FeastFeatureStore, live: LiveTopics, *, progress: ProgressCallback
) -> BackfillReport | None:
    """Rebuilds a store that is new, was emptied or was left half rebuilt; else returns None.

    A store is complete only for the topics that it was filled from: once they are recreated,
    events that no fold had seen are in the log alone. A folding process calls this before it
    folds.
    """
    topic_ids = orjson.dumps(dict(sorted(live.topic_ids.items())))
    if store.get_metadata(_FILLED_FROM) == topic_ids:
        return None
    report = backfill(log_dir, store, live=live, progress=progress)
    store.put_metadata(_FILLED_FROM, topic_ids)
    return report


def _unfinished_plan(store: FeastFeatureStore) -> _BackfillPlan | None:
    """The plan that an earlier call left, if the store still has its rebuild id."""
    raw = store.get_metadata(_PLAN)
    if raw is None:
        return None
    plan = _BackfillPlan.from_json(raw)
    if store.stored_rebuild_id() != plan.rebuild_id or not store.matches_definitions():
        return None
    store.rebuild_id()
    return plan


def _start_plan(log: EventLog, store: FeastFeatureStore, live: LiveTopics | None) -> _BackfillPlan:
    ends = _log_ends(log)
    bounds = {
        (topic_id, partition): last
        for topic_id, partition, last in ends.group_by("topic_id", "partition")
        .agg(pl.col("offset").max())
        .sort("topic_id", "partition")
        .iter_rows()
    }
    cutoff = RebuildCutoff() if live is None else _cutoff(ends, live)
    rebuild_id = store.begin_rebuild(cutoff)
    plan = _BackfillPlan(rebuild_id, bounds, int(ends["events"].sum()))
    store.put_metadata(_PLAN, plan.to_json())
    return plan


def _log_ends(log: EventLog) -> pl.DataFrame:
    """Per (topic id, partition, source partition): last offsets and event count.

    One pass in offset order, so that the bounds and the cutoff describe the same moment.
    """
    parts = [_batch_ends(d.stamp, d.table) for d in log.deliveries()]
    empty = {
        "topic_id": pl.String,
        "partition": pl.Int64,
        "source_partition": pl.Int32,
        "offset": pl.Int64,
        "source_offset": pl.Int64,
        "events": pl.UInt32,
    }
    frame = pl.concat([pl.DataFrame(schema=empty), *parts])
    keys = ["topic_id", "partition", "source_partition"]
    return frame.group_by(keys).agg(pl.col("offset", "source_offset").max(), pl.col("events").sum())


def _batch_ends(stamp: Stamp, table: pa.Table) -> pl.DataFrame:
    frame = pl.DataFrame(table.select(["source_partition", "source_offset"]))
    return (
        frame.group_by("source_partition")
        .agg(pl.col("source_offset").max(), events=pl.len())
        .select(
            topic_id=pl.lit(stamp.topic_id),
            partition=pl.lit(stamp.partition, pl.Int64),
            source_partition="source_partition",
            offset=pl.lit(stamp.offset, pl.Int64),
            source_offset="source_offset",
            events="events",
        )
    )


def _cutoff(ends: pl.DataFrame, live: LiveTopics) -> RebuildCutoff:
    """The cutoff at the log's end of the topic that live folds read."""
    current = ends.filter(pl.col("topic_id") == live.topic_ids.get("user", ""))
    columns = current.select("partition", "source_partition", "source_offset").iter_rows()
    offsets = {(partition, source): offset for partition, source, offset in columns}
    return RebuildCutoff(live.partitions, live.topic_ids, offsets)


def _chunks(
    log: EventLog, plan: _BackfillPlan, rows: int
) -> Iterator[tuple[pa.Table, LogPosition]]:
    """The rest of the plan in chunks, each with the position of its last batch."""
    tables: list[pa.Table] = []
    held, position = 0, None
    for stamp, table in _remaining_batches(log, plan):
        position = (stamp.topic_id, stamp.partition, stamp.offset)
        tables.append(table)
        held += table.num_rows
        if (held >= rows and plan.end is None) or position == plan.end:
            yield pa.concat_tables(tables), position
            tables, held, position = [], 0, None
    if position is not None:
        yield pa.concat_tables(tables), position


def _remaining_batches(log: EventLog, plan: _BackfillPlan) -> Iterator[tuple[Stamp, pa.Table]]:
    """The log's batches after the last finished chunk and within the plan's bounds, in order."""
    for delivery in log.deliveries():
        stamp = delivery.stamp
        position = (stamp.topic_id, stamp.partition, stamp.offset)
        if plan.last is not None and position <= plan.last:
            continue
        if stamp.offset <= plan.bounds.get((stamp.topic_id, stamp.partition), -1):
            yield stamp, delivery.table


def _fold_chunk(store: FeastFeatureStore, chunk: pa.Table, plan: _BackfillPlan) -> int:
    stamp = Stamp(f"backfill {plan.rebuild_id}", 0, plan.done)
    return sum(store.fold(entity, chunk, stamp) for entity in DEFINITIONS)
