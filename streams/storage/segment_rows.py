"""Batches as rows of one table: cut by hour, placed one after the other, and taken apart again.

Knows stamps, Arrow tables and hours. Does not know files (`streams.storage.segments`). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.contract import Stamp
from streams.storage.segment_files import Place, hour_of

POSITION = pa.schema(
    [
        pa.field("epoch", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # within the batch
    ]
)

SPANNING_MS = 3_600_000  # a batch that took longer than this to arrive is loaded history


def hour_runs(parts: Sequence[pa.Table], times: Sequence[str]) -> Iterator[tuple[int, slice]]:
    """Neighbouring batches that go into one file, each run with its hour.

    A run is of one hour. Loaded history arrives "when it happened", so that one batch
    may span months: such batches join the run before them, or share one, since each of
    them in the hours of its rows would be a file for every few rows. An empty batch
    goes with its neighbours; where all are empty there is no run.
    """
    start, hour, only_spanning = 0, None, True
    for number, part in enumerate(parts):
        if not part.num_rows:
            continue
        spans = [pc.min_max(part[name]).as_py() for name in times]
        newest = hour_of(max(span["max"] for span in spans))
        spanning = spans[0]["max"] - spans[0]["min"] > SPANNING_MS
        joins = spanning and (only_spanning or hour is None or newest <= hour)
        if hour is not None and newest != hour and not joins:
            yield hour, slice(start, number)
            start, hour, only_spanning = number, None, True
        hour, only_spanning = max(hour or 0, newest), only_spanning and spanning
    if hour is not None:
        yield hour, slice(start, len(parts))


def placed(
    place: Place, offsets: Sequence[int], parts: Sequence[pa.Table], schema: pa.Schema
) -> pa.Table:
    """Batches of one partition as one table whose rows know their position.

    `schema`: the parts' columns, and POSITION.
    """
    counts = [part.num_rows for part in parts]
    rows = [np.arange(count, dtype=np.int32) for count in counts]
    position = [
        pa.repeat(place[0], sum(counts)),
        pa.repeat(pa.scalar(place[1], pa.int32()), sum(counts)),
        pa.array(np.repeat(np.array(offsets, np.int64), counts)),
        pa.array(np.concatenate(rows)),
    ]
    columns = [*pa.concat_tables(parts).columns, *position]
    return pa.Table.from_arrays(columns, schema=schema)


def by_offset(place: Place, table: pa.Table, schema: pa.Schema) -> Iterator[tuple[Stamp, pa.Table]]:
    """A file's batches as they were delivered, however upkeep has sorted the file."""
    offsets, rows = table["offset"].to_numpy(), table["row"].to_numpy()
    step = np.diff(offsets)
    if ((step < 0) | ((step == 0) & (np.diff(rows) < 0))).any():
        table = table.take(np.lexsort((rows, offsets)))
        offsets = table["offset"].to_numpy()
    edges = np.flatnonzero(np.diff(offsets)) + 1
    columns = table.select(schema.names)
    for start, stop in zip([0, *edges], [*edges, len(offsets)], strict=True):
        if stop > start:
            yield Stamp(*place, int(offsets[start])), columns.slice(start, stop - start)


def one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0] if table.num_rows else _empty(table.schema)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
