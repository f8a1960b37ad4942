"""The log by hour: other readers of Parquet, skipped hours, retention and statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from log_batches import (
    T0,
    BatchMaker,
    append_hours,
    delivers,
    event_ids,
    parquet_files,
    read_by_duckdb,
    read_by_polars,
    shrink_files,
)
from polars.testing import assert_frame_equal

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS, HOUR_MS
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.storage import compaction
from streams.storage.segment_files import UnsupportedLayoutError
from streams.storage.segment_names import hour_of, hour_start_ms

Build = Callable[[list[dict[str, object]]], pa.Table]


@pytest.fixture(scope="session")
def make_batch(event_table: Build) -> BatchMaker:
    return BatchMaker(event_table)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_files(monkeypatch)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("compacted", [False, True])
def test_polars_and_duckdb_read_the_same_rows_as_the_log(
    tmp_path: Path, make_batch: BatchMaker, compacted: bool
) -> None:
    log = EventLog(tmp_path)
    append_hours(log, make_batch, hours=4)
    log.append(make_batch(0, T0, topic_id="second-id_/=%"))
    log.flush()
    if compacted:
        assert compaction.compact(log.segments, T0 + 9 * HOUR_MS).files
    own = log.scan().collect().sort("event_time_ms", "event_id")
    for plain in (read_by_polars(tmp_path), read_by_duckdb(tmp_path)):
        assert_frame_equal(plain.drop("hour"), own)
        assert plain["hour"].n_unique() == 4
    assert_frame_equal(
        log.read().drop("kind"), own.filter(~pl.col("duplicate")).drop("kind"), check_row_order=True
    )
    hour = hour_of(T0 + 2 * HOUR_MS)
    since = read_by_duckdb(tmp_path, f"hour >= {hour}").drop("hour")
    assert_frame_equal(since, own.filter(pl.col("ingested_at_ms") >= T0 + 2 * HOUR_MS))


@pytest.mark.usefixtures("small_files")
def test_no_row_is_newer_than_its_hour_and_live_rows_arrived_within_it(
    tmp_path: Path, make_batch: BatchMaker
) -> None:
    log = EventLog(tmp_path)
    append_hours(log, make_batch, hours=3)
    log.append(make_batch(100, T0 + 4 * HOUR_MS - 1, late_ms=-60_000))  # a client's clock is fast
    log.flush()
    compaction.compact(log.segments, T0 + 9 * HOUR_MS)
    for hour, rows in read_by_polars(tmp_path).group_by("hour"):
        start = hour_start_ms(int(str(hour[0])))
        newest = rows.select(pl.max_horizontal("event_time_ms", "ingested_at_ms").max()).item()
        assert newest < start + HOUR_MS
        on_time = rows.filter(~pl.col("event_id").str.starts_with("e/0/100/"))
        assert on_time["ingested_at_ms"].is_between(start, start + HOUR_MS, closed="left").all()


@pytest.mark.usefixtures("small_files")
def test_a_read_since_a_time_opens_no_earlier_hour(
    tmp_path: Path, make_batch: BatchMaker, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path)
    append_hours(log, make_batch, hours=5)
    since = T0 + 3 * HOUR_MS
    wanted = log.read(since_ms=since)
    assert 0 < wanted.height < log.read().height
    for hour, folder in log.segments.files.hours():
        if hour < hour_of(since):
            for path in folder.iterdir():
                path.write_bytes(b"no Parquet")
    assert EventLog(tmp_path).read(since_ms=since).equals(wanted)
    assert "is skipped" not in caplog.text
    assert log.read().height >= wanted.height
    assert "is skipped" in caplog.text


def test_loaded_history_does_not_make_a_file_for_every_hour(
    tmp_path: Path, event_table: Build
) -> None:
    log = EventLog(tmp_path)
    for offset in range(50):
        days = [T0 - (400 - 8 * offset - day) * DAY_MS for day in range(8)]
        rows = [{"event_id": f"{t}", "event_time_ms": t, "ingested_at_ms": t} for t in days]
        log.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), event_table(rows)))
    log.flush()
    assert len(parquet_files(log)) == 1
    assert log.read(since_ms=T0 - 8 * DAY_MS).height == 8
    assert [d.stamp.offset for d in log.deliveries()] == list(range(50))


@pytest.mark.usefixtures("small_files")
def test_retention_drops_whole_hours_and_records_it(tmp_path: Path, make_batch: BatchMaker) -> None:
    log = EventLog(tmp_path)
    sent = append_hours(log, make_batch, hours=4)
    assert log.begins_at_ms() is None
    assert compaction.retain(log.segments, T0 - 1) == 0
    assert log.begins_at_ms() is None
    before = T0 + 2 * HOUR_MS
    old = [d for d in sent if d.table["ingested_at_ms"][0].as_py() < before]
    assert compaction.retain(log.segments, before + 30 * 60_000) == 4 * len(old)
    assert log.begins_at_ms() == before
    left = {hour for hour, _ in log.segments.files.hours()}
    assert left == {hour_of(before), hour_of(before + HOUR_MS)}
    kept = [d for d in sent if d not in old]
    for delivery in sent:
        log.append(delivery)
        EventLog(tmp_path).append(delivery)
    assert delivers(log, kept)
    assert compaction.retain(log.segments, before + 30 * 60_000) == 0
    assert log.last_offset("e", 0) == 35


def test_retention_drops_old_write_ahead_files_and_no_young_rows(
    tmp_path: Path, make_batch: BatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    log.append(make_batch(0, T0))
    log.append(make_batch(1, T0 + 3 * HOUR_MS, late_ms=300 * DAY_MS))
    assert compaction.retain(log.segments, T0 + 2 * HOUR_MS) == 0
    monkeypatch.setattr(compaction, "_age_s", lambda _: 2 * compaction.FLUSH_AGE_S)
    assert compaction.retain(log.segments, T0 + 2 * HOUR_MS) == 4
    assert event_ids(log) == [f"e/0/1/{row}" for row in range(4)]


def test_log_stats_count_the_contents(tmp_path: Path, make_batch: BatchMaker) -> None:
    log = EventLog(tmp_path)
    assert compaction.log_stats(log.segments).rows == 0
    for offset in range(3):
        log.append(make_batch(offset, T0 + offset * HOUR_MS))
    log.flush()
    log.append(make_batch(3, T0 + 3 * HOUR_MS))
    stats = compaction.log_stats(log.segments)
    assert (stats.rows, stats.hours, stats.files, stats.pending_batches) == (16, 3, 3, 1)
    assert (stats.oldest_ms, stats.newest_ms) == (T0 - 50, T0 + 3 * HOUR_MS)
    assert stats.partitions == [("e", 0)]
    assert stats.size_bytes > 1_000


def test_an_earlier_layout_is_rejected_rather_than_left_unread(tmp_path: Path) -> None:
    (tmp_path / "log" / "epoch" / "0000" / "tail").mkdir(parents=True)
    with pytest.raises(UnsupportedLayoutError, match=r"move .*/log away"):
        EventLog(tmp_path / "log")
