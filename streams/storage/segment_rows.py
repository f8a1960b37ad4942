"""Batches as rows of one table: grouped by hour, joined with their positions, split again.

Knows stamps, Arrow tables and hours. Does not know files (`streams.storage.segments`). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.contract import Stamp
from streams.contract.clock import HOUR_MS
from streams.storage.segment_names import LogPartition, hour_of

POSITION = pa.schema(
    [
        pa.field("epoch", pa.string(), nullable=False),  # the topic id
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # within the batch
    ]
)

HISTORY_SPAN_MS = HOUR_MS  # a batch whose arrival times span more than this is loaded history


def hour_runs(parts: Sequence[pa.Table], times: Sequence[str]) -> Iterator[tuple[int, slice]]:
    """Neighbouring batches that share a file: (hour, slice) of each run.

    A run belongs to one hour. Loaded history has its event time as arrival time, so that one
    batch may span months. Splitting it by hour would make a file for every few rows, so such
    batches join the run before them or share a run. Empty batches join their neighbours; if all
    are empty, there is no run.
    """
    start, hour, only_history = 0, None, True
    for index, part in enumerate(parts):
        if not part.num_rows:
            continue
        ranges = [pc.min_max(part[name]).as_py() for name in times]
        newest = hour_of(max(each["max"] for each in ranges))
        history = ranges[0]["max"] - ranges[0]["min"] > HISTORY_SPAN_MS
        joins = history and (only_history or hour is None or newest <= hour)
        if hour is not None and newest != hour and not joins:
            yield hour, slice(start, index)
            start, hour, only_history = index, None, True
        hour, only_history = max(hour or 0, newest), only_history and history
    if hour is not None:
        yield hour, slice(start, len(parts))


def with_positions(
    partition: LogPartition, offsets: Sequence[int], parts: Sequence[pa.Table], schema: pa.Schema
) -> pa.Table:
    """The batches of one partition as one table of `schema`: their columns and POSITION."""
    counts = [part.num_rows for part in parts]
    rows = [np.arange(count, dtype=np.int32) for count in counts]
    position = [
        pa.repeat(partition.topic_id, sum(counts)),
        pa.repeat(pa.scalar(partition.partition, pa.int32()), sum(counts)),
        pa.array(np.repeat(np.array(offsets, np.int64), counts)),
        pa.array(np.concatenate(rows)),
    ]
    columns = [*pa.concat_tables(parts).columns, *position]
    return pa.Table.from_arrays(columns, schema=schema)


def split_by_offset(
    partition: LogPartition, table: pa.Table, schema: pa.Schema
) -> Iterator[tuple[Stamp, pa.Table]]:
    """The inverse of `with_positions`, also for a table that compaction has sorted."""
    offsets, rows = table["offset"].to_numpy(), table["row"].to_numpy()
    step = np.diff(offsets)
    if ((step < 0) | ((step == 0) & (np.diff(rows) < 0))).any():
        table = table.take(np.lexsort((rows, offsets)))
        offsets = table["offset"].to_numpy()
    edges = np.flatnonzero(np.diff(offsets)) + 1
    columns = table.select(schema.names)
    for start, stop in zip([0, *edges], [*edges, len(offsets)], strict=True):
        if stop > start:
            yield Stamp(*partition, int(offsets[start])), columns.slice(start, stop - start)


def to_record_batch(table: pa.Table) -> pa.RecordBatch:
    if table.num_rows:
        return table.combine_chunks().to_batches()[0]
    empty = [pa.array([], field.type) for field in table.schema]
    return pa.RecordBatch.from_arrays(empty, schema=table.schema)
