"""Compaction changes files and never rows, also after crashes and beside writers and readers."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_batches import (
    T0,
    BatchMaker,
    append_hours,
    delivers,
    event_ids,
    parquet_files,
    read_by_polars,
    shrink_files,
)

from streams.contract.clock import DAY_MS, HOUR_MS, ManualClock
from streams.event_log import EventLog
from streams.storage import compaction

Build = Callable[[list[dict[str, object]]], pa.Table]

pytestmark = pytest.mark.usefixtures("small_files")


@pytest.fixture(scope="session")
def make_batch(event_table: Build) -> BatchMaker:
    return BatchMaker(event_table)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_files(monkeypatch)


def test_compaction_changes_files_and_no_rows(tmp_path: Path, make_batch: BatchMaker) -> None:
    log = EventLog(tmp_path)
    sent = append_hours(log, make_batch, hours=3)
    log.flush()
    files = len(parquet_files(log))
    before = log.scan().collect().sort("partition", "offset", "row")
    reported: list[float] = []
    done = compaction.compact(
        log.segments, T0 + 9 * HOUR_MS, lambda share, _: reported.append(share)
    )
    assert (done.files, done.into, done.rows) == (files, 6, before.height)
    assert reported == sorted(reported)
    assert reported[-1] == 1.0
    assert len(parquet_files(log)) == 6
    assert log.scan().collect().sort("partition", "offset", "row").equals(before)
    assert delivers(log, sent)
    for path in parquet_files(log):
        assert pl.read_parquet(path, hive_partitioning=False)["event_time_ms"].is_sorted()
    assert compaction.compact(log.segments, T0 + 9 * HOUR_MS).files == 0
    for delivery in sent:
        EventLog(tmp_path).append(delivery)
    assert delivers(log, sent)


def test_an_open_hour_is_merged_once_it_has_many_files(
    tmp_path: Path, make_batch: BatchMaker
) -> None:
    log, offset = EventLog(tmp_path), 0
    for files, merged in [(3, 0), (4, 4), (4, 0)]:
        while len(parquet_files(log)) < files:
            log.append(make_batch(offset, T0 + offset, rows=1))
            offset += 1
        assert compaction.compact(log.segments).files == merged
    assert event_ids(log) == sorted(f"e/0/{n}/0" for n in range(offset))


def test_an_interrupted_compaction_counts_no_row_twice(
    tmp_path: Path, make_batch: BatchMaker
) -> None:
    """Killed between the rename and the removals, for any of its merges."""
    log = EventLog(tmp_path / "log")
    sent = append_hours(log, make_batch, hours=2)
    log.flush()
    shutil.copytree(tmp_path / "log", tmp_path / "before")
    compaction.compact(log.segments, T0 + 9 * HOUR_MS)
    shutil.copytree(tmp_path / "before", tmp_path / "log", dirs_exist_ok=True)
    again = EventLog(tmp_path / "log")
    assert delivers(again, sent)
    assert again.read().height == 4 * len(sent)
    assert again.erase("u2", T0 + DAY_MS) == len(sent)
    assert again.read().height == read_by_polars(tmp_path / "log").height == 3 * len(sent)


def test_an_interrupted_flush_counts_no_row_twice_even_after_an_erasure(
    tmp_path: Path, make_batch: BatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    times = [T0 + HOUR_MS - 1, T0 + HOUR_MS, T0 + HOUR_MS + 1]
    with monkeypatch.context() as crash:
        crash.setattr(type(log.segments.files), "mark_sealed", lambda *_: 1 / 0)
        for offset, at_ms in enumerate(times[:2]):
            log.append(make_batch(offset, at_ms))
        with pytest.raises(ZeroDivisionError):
            log.append(make_batch(2, times[2]))
    again = EventLog(tmp_path)
    everything = [f"e/0/{offset}/{row}" for offset in range(3) for row in range(4)]
    assert event_ids(again) == everything
    assert again.erase("u0", T0 + DAY_MS) == 3
    for offset in range(7):
        again.append(make_batch(offset, T0 + HOUR_MS + offset))
    held = [f"e/0/{offset}/{row}" for offset in range(7) for row in range(1, 4)]
    assert event_ids(again) == held
    again.flush()
    assert sorted(read_by_polars(tmp_path)["event_id"]) == held


def test_a_reader_beside_a_writer_and_a_killed_compaction_sees_whole_prefixes(
    tmp_path: Path, make_batch: BatchMaker
) -> None:
    sent = [make_batch(offset, T0 + offset * 97_000, rows=2) for offset in range(400)]

    def write_all() -> None:
        log = EventLog(tmp_path)
        for delivery in sent:
            log.append(delivery)
            time.sleep(0.002)

    def compact_forever() -> None:
        log = EventLog(tmp_path)
        while True:
            compaction.compact(log.segments)

    fork = multiprocessing.get_context("fork")
    writer = fork.Process(target=write_all, daemon=True)
    compactor = fork.Process(target=compact_forever, daemon=True)
    writer.start()
    compactor.start()
    heights = []
    while writer.is_alive():
        ids = event_ids(EventLog(tmp_path))
        assert ids == sorted(f"e/0/{o}/{r}" for o in range(len(ids) // 2) for r in range(2))
        heights.append(len(ids))
        if len(heights) % 5 == 0:
            compactor.kill()
            compactor.join()
            compactor = fork.Process(target=compact_forever, daemon=True)
            compactor.start()
    compactor.kill()
    writer.join()
    log = EventLog(tmp_path)
    compaction.compact(log.segments, T0 + DAY_MS)
    assert heights == sorted(heights)
    assert delivers(log, sent)
    # Eleven hours of 74 rows each, at most 40 rows a file. The fill of a file depends on when
    # compactions ran.
    assert len(parquet_files(log)) <= 4 * 11


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_sequence_of_operations_gives_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, make_batch: BatchMaker, data: st.DataObject
) -> None:
    """Clock jumps, restarts, replays, flushes, compactions and an erasure, in any order."""
    directory = tmp_path_factory.mktemp("log")
    log, sent, erased = EventLog(directory), [], False
    for _ in range(data.draw(st.integers(2, 14))):
        action = data.draw(
            st.sampled_from(["append", "append", "replay", "flush", "compact", "erase"])
        )
        if action == "append":
            at_ms = T0 + data.draw(st.sampled_from([0, 1, 1, 2, 5])) * HOUR_MS
            for _ in range(data.draw(st.integers(1, 5))):
                sent.append(make_batch(len(sent), at_ms, rows=len(sent) % 4))
                log.append(sent[-1])
        if action == "replay":
            log = EventLog(directory)
            for delivery in sent[data.draw(st.integers(0, max(0, len(sent) - 1))) :]:
                log.append(delivery)
        if action == "flush":
            log.flush()
        if action == "compact":
            compaction.compact(log.segments, data.draw(st.sampled_from([None, T0 + DAY_MS])))
        if action == "erase":
            log.erase("u1", T0 + DAY_MS)
            erased = True
    held = [i for d in sent for i in d.table["event_id"].to_pylist()]
    expected = [i for i in held if not (erased and i.endswith("/1"))]
    assert event_ids(log) == sorted(expected)
    assert [i for d in log.deliveries() for i in d.table["event_id"].to_pylist()] == expected
    log.flush()
    if expected:
        assert sorted(read_by_polars(directory)["event_id"]) == sorted(expected)


def test_periodic_compaction_continues_after_a_full_disk(
    tmp_path: Path, make_batch: BatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    append_hours(log, make_batch, hours=3)
    log.flush()
    fails = iter([True, False, False])

    class Stop:
        def __init__(self) -> None:
            self.rounds = 0

        def wait(self, _: float) -> bool:
            self.rounds += 1
            return self.rounds > 2

    original = compaction.retain

    def retain(*arguments: object) -> int:
        if next(fails):
            raise OSError(28, "No space left on device")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "retain", retain)
    clock = ManualClock(T0 + DAY_MS + HOUR_MS)
    compaction.run_compaction([log.segments], clock, Stop(), retention_days=1)  # type: ignore[arg-type]
    assert log.begins_at_ms() == T0 + HOUR_MS
    assert log.read().height == 2 * 2 * 9 * 4
    assert len(parquet_files(log)) == 4
