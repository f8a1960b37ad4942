"""Spark runs the same fold: its rows equal the local ones byte for byte."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pytest

from features.definitions import DEFINITIONS
from features.offline.backfill import backfill
from features.offline.spark import fold_table, local_session, read_log, rebuild_rows
from features.online.redis_store import FeastFeatureStore
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog

T0 = 1_700_000_000_000
STAMP = Stamp("backfill 7", 0, 0)
WHOLE = 1_000_000


@pytest.fixture(scope="module")
def log(tmp_path_factory, event_table):
    """3,000 events of two partitions and topic ids: late ones, duplicates, unmarked repeats."""
    rng = np.random.default_rng(0)
    kinds = ["shown", "play", "like", "skip", "order", "query_click", "search"]
    log = EventLog(tmp_path_factory.mktemp("log"))
    for place in range(30):
        events = [_event(rng, kinds, place * 100 + i) for i in range(100)]
        stamp = Stamp("new" if place > 20 else "early", place % 2, place)
        log.append(Delivery(EVENTS_BY_USER, stamp, event_table(events)))
    log.flush()
    return log


def _event(rng, kinds, number):
    time = T0 + int(rng.integers(0, 9 * DAY_MS))
    return {
        "event_id": f"e{number if rng.random() > 0.02 else number - 1}",
        "event_time_ms": time,
        "ingested_at_ms": time + int(rng.integers(0, 5 * HOUR_MS)),
        "kind": kinds[rng.integers(len(kinds))],
        "user_id": f"ü{rng.integers(60)}",
        "video_id": f"v{rng.integers(90)}" if rng.random() < 0.9 else None,
        "author_id": f"a{rng.integers(9)}",
        "query": f"q{rng.integers(20)}" if rng.random() < 0.5 else None,
        "dwell_ms": int(rng.integers(60_000)) if rng.random() < 0.5 else None,
        "duplicate": bool(rng.random() < 0.02),
    }


@pytest.fixture(scope="module")
def spark():
    pytest.importorskip("pyspark", reason="pyspark is not installed: see deploy/spark/spark.lock")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java 17 or newer on the PATH")
    session = local_session(2)
    yield session
    session.stop()


@pytest.fixture(scope="module")
def table(log) -> pa.Table:
    return log.scan().collect().to_arrow()


def rows(table: pa.Table) -> dict[str, bytes]:
    return dict(zip(table["id"].to_pylist(), table["row"].to_pylist(), strict=True))


@pytest.mark.parametrize("entity", list(DEFINITIONS))
def test_spark_s_rows_equal_the_local_ones(spark, log, table, entity):
    rebuilt = rebuild_rows(read_log(spark, log.directory), entity, STAMP, rebuild_id=7, buckets=5)
    here = rows(fold_table(entity, table, STAMP, rebuild_id=7))
    assert len(here) > 5
    assert rows(rebuilt.toArrow()) == here


def test_files_that_overlap_count_once(spark, log, tmp_path):
    shutil.copytree(log.directory, tmp_path / "log")
    file = next((tmp_path / "log").rglob("*.parquet"))
    (tmp_path / "log" / "left over").mkdir()
    shutil.copy(file, tmp_path / "log" / "left over" / file.name)
    twice, once = (read_log(spark, at) for at in (tmp_path / "log", log.directory))
    assert twice.count() > once.count()
    assert rows(rebuild_rows(twice, "user", STAMP).toArrow()) == rows(
        rebuild_rows(once, "user", STAMP).toArrow()
    )


@pytest.mark.parametrize("entity", list(DEFINITIONS))
def test_a_fold_of_the_whole_log_equals_a_backfill(log, table, entity, valkey):
    store = FeastFeatureStore(valkey, 5, f"whole-{entity}")
    try:
        rebuild_id = backfill(log.directory, store, chunk_rows=WHOLE).rebuild_id
        stamp = Stamp(f"backfill {rebuild_id}", 0, 0)
        here = rows(fold_table(entity, table, stamp, rebuild_id))
        assert store.stored_rows(entity, list(here)) == list(here.values())
        assert set(store.ids(entity)) == set(here)
    finally:
        store.tear_down()


def test_a_bucket_s_rows_do_not_depend_on_the_order_of_its_events(table):
    rng = np.random.default_rng(1)
    shuffled = table.take(pa.array(rng.permutation(table.num_rows)))
    assert rows(fold_table("user", shuffled, STAMP)) == rows(fold_table("user", table, STAMP))
