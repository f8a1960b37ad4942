"""Point-in-time joins and backfills, each in a process of its own, with time and peak memory.

Knows inputs, times and peaks. A peak is the process's largest resident size above its size
after imports, inputs included. Does not know the bars.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import psutil

from benchmarks.features.events import Stream, make_events
from features.definitions import DEFINITIONS
from features.store import EntityName
from streams.contract.clock import HOUR_MS

FEATURES = 20
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Join:
    """Paired seconds of CPU of a bare `join_asof` and of ours; labels in and rows out.

    Ours as a frame next to the labels, like the bare join's, and as the online reader's frame,
    whose lists are Python's.
    """

    entity: EntityName
    bare_s: list[float]
    ours_s: list[float]
    reader_s: list[float]
    labels: int
    rows: int
    peak_mb: float

    @property
    def ratio(self) -> float:
        return _paired(self.bare_s, self.ours_s)

    @property
    def reader_ratio(self) -> float:
        return _paired(self.bare_s, self.reader_s)


def _paired(bare: list[float], ours: list[float]) -> float:
    return median(o / b for b, o in zip(bare, ours, strict=True))


@dataclass(frozen=True)
class FeastJoin:
    """Feast's default offline store on the same labels: one run."""

    seconds: float
    rows: int
    peak_mb: float


@dataclass(frozen=True)
class Backfilled:
    events: int
    seconds: float
    cpu_us: float  # of this process, per event, without the store's
    peak_mb: float


def joined(folder: Path, entity: EntityName, events: int, labels: int, runs: int) -> Join:
    """Paired joins of `labels` labels against `events` events, on event time and arrival."""
    return Join(**in_process(_join, folder, entity, events, labels, runs))


def feast_join(folder: Path, events: int, labels: int) -> FeastJoin:
    return FeastJoin(**in_process(_feast_join, folder, events, labels))


def appended(folder: Path, events: int) -> None:
    """Writes a log of `events` events to `log_folder`."""
    in_process(_append, folder, events)


def backfilled(folder: Path, address: str, events: int) -> Backfilled:
    """Appends a log of `events` events and rebuilds every row from it."""
    appended(folder, events)
    return Backfilled(**in_process(_backfill, folder, address, events))


def log_folder(folder: Path, events: int) -> Path:
    """The folder of the log of so many events, after its backfill."""
    return folder / f"log-{events}"


def in_process(work: Any, *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply(work, arguments)
    return result


def rss_mb() -> float:
    return float(psutil.Process().memory_info().rss / 2**20)


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def label_inputs(entity: EntityName, events: int, labels: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events, and labels within an hour after an impression of their entity."""
    frame = pl.DataFrame(make_events(Stream(), events, 3))
    id_column = DEFINITIONS[entity].id_column
    shown = frame.filter(pl.col("kind") == 0, pl.col(id_column).is_not_null())
    picked = shown.sample(labels, seed=5, with_replacement=labels > len(shown), shuffle=True)
    after = pl.Series(np.random.default_rng(5).integers(0, HOUR_MS, labels))
    return frame, picked.select(id_column, time_ms=pl.col("event_time_ms") + after)


def _join(_folder: Path, entity: EntityName, events: int, labels: int, runs: int) -> dict[str, Any]:
    from features.offline.point_in_time.join import features_as_of, join_features

    before = rss_mb()
    frame, label_rows = label_inputs(entity, events, labels)
    id_column = DEFINITIONS[entity].id_column
    rows = len(join_features(frame, label_rows, entity))  # alone first, for the peak
    peak = peak_mb() - before
    numbers = [pl.lit(i, pl.Int64).alias(f"f{i}") for i in range(FEATURES)]
    known = frame.select(id_column, "event_time_ms", *numbers).drop_nulls(id_column)
    work: dict[str, Callable[[], object]] = {
        "bare_s": lambda: _bare(known, label_rows, id_column),
        "ours_s": lambda: join_features(frame, label_rows, entity),
        "reader_s": lambda: features_as_of(frame, label_rows, entity),
    }
    for each in work.values():
        each()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(runs):
        for name, each in work.items():
            seconds[name].append(_cpu_s(each))
    return {"entity": entity, **seconds, "labels": labels, "rows": rows, "peak_mb": peak}


def _cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process's threads, independent of other load."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _bare(known: pl.DataFrame, label_rows: pl.DataFrame, id_column: str) -> pl.DataFrame:
    return label_rows.sort("time_ms").join_asof(
        known.sort("event_time_ms"),
        left_on="time_ms",
        right_on="event_time_ms",
        by=id_column,
        check_sortedness=False,
    )


def _feast_join(folder: Path, events: int, labels: int) -> dict[str, Any]:
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, FileSource, RepoConfig, ValueType
    from feast import Field as FeastField
    from feast.types import Int64, String

    before = rss_mb()
    frame, label_rows = label_inputs("user", events, labels)
    at = pl.from_epoch("event_time_ms", time_unit="ms").dt.replace_time_zone("UTC")
    numbers = [pl.lit(i, pl.Int64).alias(f"f{i}") for i in range(FEATURES)]
    path = folder / "feast_events.parquet"
    frame.select("user_id", *numbers, event_timestamp=at).write_parquet(path)
    config = RepoConfig(
        project="offline",
        provider="local",
        registry=str(folder / "offline.db"),
        online_store=None,
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    view = FeatureView(
        name="typed",
        entities=[user],
        ttl=timedelta(days=30),
        schema=[
            FeastField(name="user_id", dtype=String),
            *(FeastField(name=f"f{i}", dtype=Int64) for i in range(FEATURES)),
        ],
        source=FileSource(name="log", path=str(path), timestamp_field="event_timestamp"),
        online=False,
    )
    store.apply([user, view])
    time_of = pl.from_epoch("time_ms", time_unit="ms").dt.replace_time_zone("UTC")
    wanted = label_rows.select("user_id", event_timestamp=time_of).to_pandas()
    began = time.perf_counter()
    answer = store.get_historical_features(
        entity_df=wanted, features=[f"typed:f{i}" for i in range(FEATURES)]
    ).to_df()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": len(answer), "peak_mb": peak_mb() - before}


def _append(folder: Path, events: int) -> dict[str, Any]:
    from streams.bus.contract import Stamp
    from streams.bus.delivery import Delivery
    from streams.contract.topics import EVENTS_BY_USER
    from streams.event_log import EventLog

    log, part = EventLog(log_folder(folder, events)), 1_000_000
    for at in range(0, events, part):
        table = make_events(Stream(), min(part, events - at), at)
        for row in range(0, table.num_rows, BATCH_ROWS):
            stamp = Stamp("bench", 0, at + row)
            log.append(Delivery(EVENTS_BY_USER, stamp, table.slice(row, BATCH_ROWS)))
    return {}


def _backfill(folder: Path, address: str, events: int) -> dict[str, Any]:
    from features.offline.backfill import backfill
    from features.online.redis_store import FeastFeatureStore

    before = rss_mb()
    store = FeastFeatureStore(address, 3, f"backfill-{events}", timeout_s=10)
    began, cpu = time.perf_counter(), time.process_time()
    report = backfill(log_folder(folder, events), store)
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_mb() - before
    store.tear_down()
    return {
        "events": report.events,
        "seconds": seconds,
        "cpu_us": used / max(1, report.events) * 1e6,
        "peak_mb": peak,
    }
