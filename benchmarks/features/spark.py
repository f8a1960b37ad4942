"""The fold on Spark local[2] and in this process: rows compared byte for byte.

Knows a log on disk and wall time. Does not know the bars. Needs pyspark (deploy/spark/spark.lock) and Java.
"""

from __future__ import annotations

import importlib.util
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from features.definitions import DEFINITIONS
from streams.bus.contract import Stamp

CORES = 2
STAMP = Stamp("backfill 1", 0, 0)


@dataclass(frozen=True)
class SparkFold:
    """Four entities' rows from one log. Seconds of wall; Spark's start is not counted."""

    events: int
    rows: int
    differ: int  # rows that are missing, extra or have other bytes
    spark_s: float
    local_s: float


def missing_requirement() -> str | None:
    """Why this machine cannot run Spark; None if it can."""
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed (deploy/spark/spark.lock)"
    return None if shutil.which("java") else "no java on the PATH"


def spark_fold(log_dir: Path) -> SparkFold:
    """Folds the log by Spark and here, after one warm-up run of Spark."""
    from features.offline.spark import fold_table, local_session, read_log, rebuild_rows
    from streams.event_log import EventLog

    log = EventLog(log_dir)
    log.flush()
    events = log.scan().collect().to_arrow()
    spark = local_session(CORES)
    try:
        filed = read_log(spark, log_dir)
        rebuild_rows(filed, "query", STAMP).count()
        rows = differ = 0
        spark_s = local_s = 0.0
        for entity in DEFINITIONS:
            began = time.perf_counter()
            there = rebuild_rows(filed, entity, STAMP).toArrow()
            middle = time.perf_counter()
            here = fold_table(entity, events, STAMP)
            local_s += time.perf_counter() - middle
            spark_s += middle - began
            rows += here.num_rows
            differ += len(_pairs(here) ^ _pairs(there))
        return SparkFold(events.num_rows, rows, differ, spark_s, local_s)
    finally:
        spark.stop()


def _pairs(rows: pa.Table) -> set[tuple[str, bytes]]:
    return set(zip(rows["id"].to_pylist(), rows["row"].to_pylist(), strict=True))
