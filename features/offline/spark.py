"""Rows from logs that outgrow one machine: Spark runs the same fold over buckets of entities.

Knows how the log's files become buckets of whole entities. Does not know windows, tiles or
stores: each bucket is one call of `features.rows.aggregate`, so its rows equal the local ones
byte for byte. Needs pyspark (deploy/spark/spark.lock) and Java 17 or newer; nothing else
imports this module. Memory: one bucket's events in each Python worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.definitions import DEFINITIONS
from features.rows.aggregate import BASE_EVENT_COLUMNS, fold_events, group_by_entity
from features.rows.byte_slices import ByteSlices
from features.store import EntityName
from features.stored_declaration import (
    Declaration,
    adopt,
    declaration_in_force,
    read_declaration,
)
from streams.bus.contract import Stamp
from streams.contract.schema import conform, event_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession  # type: ignore[import-not-found]

POSITION_COLUMNS = ("epoch", "partition", "offset", "row")  # of an event in the log; stored names
ROW_SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("row", pa.binary())])
BUCKETS = 64
_BUCKET = "entity_bucket"


def local_session(cores: int = 2) -> SparkSession:
    """A session on this machine's cores, for tests and logs of moderate size."""
    from pyspark.sql import SparkSession

    # Python workers must find this interpreter and these packages.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.sql.shuffle.partitions": str(4 * cores),
    }
    builder = SparkSession.builder.appName("tidemill").master(f"local[{cores}]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def read_log(spark: SparkSession, log_dir: Path | str) -> DataFrame:
    """The log's Parquet files, in any folders below `log_dir`.

    Flush the log first (`EventLog.flush`): batches that are not Parquet yet are not read.
    Puts the declaration beside the log in force, unless this process has declared by itself; where
    Spark reads the log from elsewhere, call `deploy.wiring.declare` or `adopt` yourself.
    """
    adopt(read_declaration(Path(log_dir)))
    reader = spark.read.option("recursiveFileLookup", "true").option("mergeSchema", "true")
    return reader.option("pathGlobFilter", "*.parquet").parquet(str(log_dir))


def rebuild_rows(
    log: DataFrame,
    entity: EntityName,
    stamp: Stamp,
    *,
    rebuild_id: int = 0,
    buckets: int = BUCKETS,
) -> DataFrame:
    """`ROW_SCHEMA`: each entity's row after one fold of the whole log under `stamp`.

    Args:
        log: the columns of `EVENT_SCHEMA` and `POSITION_COLUMNS`. An event that overlapping
            files hold twice has the same position and counts once.
        stamp: stored in the rows; a backfill's is `Stamp(f"backfill {rebuild_id}", 0, 0)`.
        buckets: how many buckets entities are hashed into; raise it until a bucket's events fit
            a worker.
    """
    from pyspark.sql import functions as F

    definition = DEFINITIONS[entity]
    columns = dict.fromkeys(
        (*BASE_EVENT_COLUMNS, "duplicate", *definition.event_columns, *POSITION_COLUMNS)
    )
    # Files from before a declaration lack its columns; the fold reads them as nulls.
    stored = [name for name in columns if name in log.columns]
    known = log.where(F.col(definition.id_column).isNotNull()).select(*stored)
    bucket = F.pmod(F.xxhash64(definition.id_column), F.lit(buckets)).alias(_BUCKET)
    fold_bucket = _bucket_fold(entity, stamp, rebuild_id)
    return known.groupBy(bucket).applyInArrow(fold_bucket, "id string, row binary")


def _bucket_fold(
    entity: EntityName, stamp: Stamp, rebuild_id: int
) -> Callable[[pa.Table], pa.Table]:
    declared = declaration_in_force().to_json()

    def fold_bucket(events: pa.Table) -> pa.Table:
        adopt(Declaration.from_json(declared))  # this runs in a worker process of Spark
        return fold_table(entity, events, stamp, rebuild_id)

    return fold_bucket


def fold_table(entity: EntityName, events: pa.Table, stamp: Stamp, rebuild_id: int = 0) -> pa.Table:
    """`ROW_SCHEMA` of these events, folded in the log's order.

    events: `POSITION_COLUMNS`, and of `EVENT_SCHEMA` at least the columns that the fold reads.
    """
    definition = DEFINITIONS[entity]
    wanted = {*events.column_names, *definition.event_columns}
    schema = pa.schema([field for field in event_schema() if field.name in wanted])
    batch = group_by_entity(definition, conform(_in_log_order(events), schema))
    empty = ByteSlices.from_list([None] * len(batch.names))
    folded = fold_events(definition, empty, batch, stamp, rebuild_id)
    ids = batch.names.take(pa.array(folded.changed))
    return pa.table(
        [ids.cast(pa.string()), pa.array(folded.rows.to_list(), pa.binary())], ROW_SCHEMA
    )


def _in_log_order(events: pa.Table) -> pa.Table:
    """Sorted by position, each position once; Spark's shuffle keeps no order."""
    frame: Any = pl.from_arrow(events.select(list(POSITION_COLUMNS)))
    first = frame.with_row_index("at").unique(POSITION_COLUMNS, keep="first").sort(POSITION_COLUMNS)
    return events.take(pa.array(first["at"].to_numpy().astype(np.int64)))
