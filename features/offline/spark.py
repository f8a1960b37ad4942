"""Rows from logs that outgrow one machine: the same kernel, mapped over the log by Spark.

Knows how the log's files become buckets of whole entities. Does not know windows, tiles
or stores: each bucket is one call of `features.rows.aggregate`, so its rows are the local ones byte
for byte. Needs pyspark (deploy/spark/spark.lock) and Java 17 or newer; nothing else
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
from features.rows.aggregate import PLACED, fold, group
from features.rows.byte_slices import Spans
from features.store import EntityName
from streams.bus.contract import Stamp
from streams.contract.schema import EVENT_SCHEMA, conform

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession  # type: ignore[import-not-found]

POSITION = ("epoch", "partition", "offset", "row")  # where the log holds an event
ROWS = pa.schema([pa.field("id", pa.string()), pa.field("row", pa.binary())])
BUCKETS = 64
_BUCKET = "entity_bucket"


def local(cores: int = 2) -> SparkSession:
    """A session in this machine's cores, for tests and small clusters of one."""
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
    """The log's Parquet files as they lie, whichever folders hold them.

    Gather the log first (`EventLog.gather`): batches that are not Parquet yet are not read.
    """
    reader = spark.read.option("recursiveFileLookup", "true").option("mergeSchema", "true")
    return reader.option("pathGlobFilter", "*.parquet").parquet(str(log_dir))


def rebuilt(
    log: DataFrame,
    entity: EntityName,
    stamp: Stamp,
    *,
    generation: int = 0,
    buckets: int = BUCKETS,
) -> DataFrame:
    """`ROWS`: each entity's stored bytes after the whole log, as one fold under `stamp` gives.

    Args:
        log: `EVENT_SCHEMA`'s columns and `POSITION`'s. An event that overlapping files hold
            twice is the same by its position and counts once.
        stamp: what the rows carry; a rebuild's is `Stamp(f"backfill {generation}", 0, 0)`.
        buckets: entities are spread over so many by the hash of their id; give more where
            a bucket's events would not fit a worker.
    """
    from pyspark.sql import functions as F

    definition = DEFINITIONS[entity]
    columns = dict.fromkeys((*PLACED, "duplicate", *definition.event_columns, *POSITION))
    known = log.where(F.col(definition.id_column).isNotNull()).select(*columns)
    bucket = F.pmod(F.xxhash64(definition.id_column), F.lit(buckets)).alias(_BUCKET)
    whole = _bucket_fold(entity, stamp, generation)
    return known.groupBy(bucket).applyInArrow(whole, "id string, row binary")


def _bucket_fold(
    entity: EntityName, stamp: Stamp, generation: int
) -> Callable[[pa.Table], pa.Table]:
    def whole(events: pa.Table) -> pa.Table:
        return folded(entity, events, stamp, generation)

    return whole


def folded(entity: EntityName, events: pa.Table, stamp: Stamp, generation: int = 0) -> pa.Table:
    """`ROWS` of these events, folded in the log's order.

    events: `POSITION` and at least those columns of `EVENT_SCHEMA` that the fold reads.
    """
    definition = DEFINITIONS[entity]
    brought = pa.schema([field for field in EVENT_SCHEMA if field.name in events.column_names])
    batch = group(definition, conform(_in_log_order(events), brought))
    empty = Spans.of([None] * len(batch.names))
    done = fold(definition, empty, batch, stamp, generation)
    ids = batch.names.take(pa.array(done.changed))
    return pa.table([ids.cast(pa.string()), pa.array(done.rows.to_list(), pa.binary())], ROWS)


def _in_log_order(events: pa.Table) -> pa.Table:
    """By position, each position once: a shuffle brings rows in any order."""
    frame: Any = pl.from_arrow(events.select(list(POSITION)))
    first = frame.with_row_index("at").unique(POSITION, keep="first").sort(POSITION)
    return events.take(pa.array(first["at"].to_numpy().astype(np.int64)))
