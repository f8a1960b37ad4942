"""Log, features and feedback as plain Parquet files for other tools.

Knows the event log, the feature store's contract and Parquet. Does not know Feast or settings. A
file appears under its name once it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from features.declarations import ColumnType
from features.definitions import DEFINITIONS
from features.online.row_reader import batched
from features.store import EntityName, FeatureStore, Status, plain_values
from streams.contract.declaration import contract
from streams.event_log import EventLog
from streams.feedback.store import read_feedback, segments_of
from streams.progress import ProgressCallback

_ROWS = 1_024  # read together
_TYPES: dict[ColumnType, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "texts": pa.list_(pa.string()),
    "integers": pa.list_(pa.int64()),
}


def export_log(directory: Path, folder: Path) -> int:
    """Writes log.parquet: every event with its position, duplicates marked. Returns the rows."""
    log = EventLog(directory)
    log.flush()
    names = {number: name for name, number in contract().signals.number.items()}
    kind = pl.col("kind").replace_strict(names, return_dtype=pl.String)
    with _whole(folder / "log.parquet") as path:

        def write(scan: pl.LazyFrame) -> pl.DataFrame:
            scan.with_columns(kind).sink_parquet(path)
            return pl.DataFrame()

        log.segments.read_consistently(write)
        return int(pq.read_metadata(path).num_rows)


def export_feedback(directory: Path, folder: Path) -> int:
    """Writes feedback.parquet: every impression's last revision. Returns the rows."""
    segments_of(directory).flush()
    rows = read_feedback(directory)
    with _whole(folder / "feedback.parquet") as path:
        rows.write_parquet(path)
    return len(rows)


def export_features(
    store: FeatureStore,
    entity: EntityName,
    ids: list[str],
    now_ms: int,
    folder: Path,
    progress: ProgressCallback,
) -> int:
    """Writes features_ENTITY.parquet: id, `last_event_ms` and every feature as a reader has them at
    `now_ms`; rows that are absent, expired or erased are left out. Returns the rows."""
    types = DEFINITIONS[entity].column_types
    fields = [("id", pa.string()), ("last_event_ms", pa.int64())]
    schema = pa.schema([*fields, *((name, _TYPES[kind]) for name, kind in types.items())])
    rows = 0
    with (
        _whole(folder / f"features_{entity}.parquet") as path,
        pq.ParquetWriter(path, schema) as to,
    ):
        for part in batched(iter(ids), _ROWS):
            frame = store.read(entity, part, now_ms)
            columns = {name: plain_values(frame.columns[name]) for name in types}
            columns |= {"id": list(frame.ids), "last_event_ms": frame.last_event_ms.tolist()}
            table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
            table = table.filter(pa.array(np.asarray(frame.status == Status.PRESENT)))
            to.write_table(table)
            rows += table.num_rows
            progress(rows / max(len(ids), 1), f"{rows:,} rows")
    return rows


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path to write to, which takes the target's name at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    yield partial
    os.replace(partial, target)
