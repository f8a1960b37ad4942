"""Batches by hour of arrival, and what other readers of Parquet see of a log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import HOUR_MS
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.storage import compaction, segments

T0 = 1_767_225_600_000  # 2026-01-01 00:00 UTC


@dataclass(frozen=True)
class BatchMaker:
    """Makes a batch of events that arrived at `at_ms`; row 1 is late by `late_ms`."""

    event_table: Callable[[list[dict[str, object]]], pa.Table]

    def __call__(
        self,
        offset: int,
        at_ms: int,
        partition: int = 0,
        topic_id: str = "e",
        late_ms: int = 50,
        rows: int = 4,
    ) -> Delivery:
        events: list[dict[str, object]] = [
            {
                "event_id": f"{topic_id}/{partition}/{offset}/{row}",
                "user_id": f"u{row}",
                "event_time_ms": at_ms - (late_ms if row == 1 else row),
                "ingested_at_ms": at_ms,
                "video_id": "v",
            }
            for row in range(rows)
        ]
        stamp = Stamp(topic_id, partition, offset)
        return Delivery(EVENTS_BY_USER, stamp, self.event_table(events))


def shrink_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every third batch trigger a flush, and four files a merge."""
    monkeypatch.setattr(segments, "FLUSH_FILES", 3)
    monkeypatch.setattr(compaction, "FILE_ROWS", 40)
    monkeypatch.setattr(compaction, "OPEN_FILES", 4)


def append_hours(log: EventLog, make_batch: BatchMaker, hours: int) -> list[Delivery]:
    """Appends to two partitions nine batches an hour, late events among them."""
    sent = [
        make_batch(
            hour * 9 + n, T0 + hour * HOUR_MS + n * 60_000, partition, late_ms=n * HOUR_MS // 2
        )
        for partition in (0, 1)
        for hour in range(hours)
        for n in range(9)
    ]
    for delivery in sent:
        log.append(delivery)
    return sent


def event_ids(log: EventLog) -> list[str]:
    return sorted(log.read()["event_id"].to_list())


def read_by_polars(directory: Path) -> pl.DataFrame:
    frame = pl.read_parquet(directory / "parquet/**/*.parquet", hive_partitioning=True)
    return frame.sort("event_time_ms", "event_id")


def read_by_duckdb(directory: Path, where: str = "true") -> pl.DataFrame:
    files = f"'{directory}/parquet/**/*.parquet'"
    query = f"select * from read_parquet({files}, hive_partitioning=true) where {where}"
    return duckdb.sql(query).pl().sort("event_time_ms", "event_id")


def parquet_files(log: EventLog) -> list[Path]:
    return sorted(log.directory.rglob("*.parquet"))


def delivers(log: EventLog, sent: list[Delivery]) -> bool:
    """Whether the log returns exactly these batches, in the order of their stamps."""
    found = list(log.deliveries())
    wanted = sorted(sent, key=lambda delivery: delivery.stamp)
    return [d.stamp for d in found] == [d.stamp for d in wanted] and all(
        a.table.equals(b.table) for a, b in zip(found, wanted, strict=True)
    )
