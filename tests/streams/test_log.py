"""The event log holds each stamp once after crashes, repeats and restarts."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery, combine
from streams.contract.schema import to_ipc
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.storage import segments
from streams.storage.segment_names import SealedFile

Build = Callable[[list[dict[str, object]]], pa.Table]
Deliver = Callable[..., Delivery]


@pytest.fixture(scope="session")
def deliver(event_table: Build) -> Deliver:
    """Makes a batch of `rows` rows whose event ids state its stamp."""

    def make(offset: int, rows: int = 3, partition: int = 0, topic_id: str = "e") -> Delivery:
        table = event_table(
            [
                {
                    "event_id": f"{topic_id}/{partition}/{offset}/{row}",
                    "user_id": f"u{row}",
                    "event_time_ms": 1_000 * offset + row,
                    "ingested_at_ms": 1_000 * offset + 500,
                    "video_id": "v",
                }
                for row in range(rows)
            ]
        )
        payload = to_ipc(table.combine_chunks().to_batches()[0]) if rows else None
        return Delivery(EVENTS_BY_USER, Stamp(topic_id, partition, offset), table, {}, payload)

    return make


@pytest.fixture(params=["no flush", "frequent flush", "direct flush"])
def flushing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Nothing is flushed, every third batch triggers a flush, or three rows do so directly."""
    if request.param == "frequent flush":
        monkeypatch.setattr(segments, "FLUSH_FILES", 3)
    if request.param == "direct flush":
        monkeypatch.setattr(segments, "DIRECT_FLUSH_ROWS", 3)
    return str(request.param)


def _ids(log: EventLog) -> list[str]:
    return sorted(log.read()["event_id"].to_list())


def _expected(offsets: range, rows: int = 3, partition: int = 0, topic_id: str = "e") -> list[str]:
    return sorted(f"{topic_id}/{partition}/{o}/{r}" for o in offsets for r in range(rows))


def _parquet_rows(directory: Path) -> int:
    """The rows that duckdb counts in the Parquet files."""
    query = f"select count(*) from '{directory}/**/*.parquet'"
    return int(duckdb.sql(query).fetchall()[0][0])


@pytest.mark.usefixtures("flushing")
def test_a_batch_appended_again_changes_nothing(tmp_path: Path, deliver: Deliver) -> None:
    log = EventLog(tmp_path)
    for offset in [*range(10), *range(5, 10), 0]:
        log.append(deliver(offset))
    for offset in range(7):
        EventLog(tmp_path).append(deliver(offset))
    assert _ids(log) == _expected(range(10))


@pytest.mark.usefixtures("flushing")
def test_two_concurrent_writers_write_one_log(tmp_path: Path, deliver: Deliver) -> None:
    one, two = EventLog(tmp_path), EventLog(tmp_path)
    for offset in range(20):
        one.append(deliver(offset))
        if offset >= 4:
            two.append(deliver(offset - 4))
    for offset in range(10, 25):
        two.append(deliver(offset))
    assert _ids(one) == _ids(two) == _expected(range(25))


@pytest.mark.usefixtures("flushing")
def test_offsets_of_a_recreated_topic_overwrite_nothing(tmp_path: Path, deliver: Deliver) -> None:
    log = EventLog(tmp_path)
    for topic_id, batches in [("first/=", 7), ("second", 4)]:
        for offset in range(batches):
            log.append(deliver(offset, topic_id=topic_id))
    expected = _expected(range(7), topic_id="first/=") + _expected(range(4), topic_id="second")
    assert _ids(log) == sorted(expected)
    assert set(log.scan().collect()["epoch"]) == {"first/=", "second"}


def test_an_event_is_on_disk_when_append_returns(tmp_path: Path, deliver: Deliver) -> None:
    def write_and_die() -> None:
        EventLog(tmp_path).append(deliver(0))
        os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=write_and_die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert _ids(EventLog(tmp_path)) == _expected(range(1))


@pytest.mark.usefixtures("flushing")
@pytest.mark.parametrize("together", [1, 4])
def test_a_writer_killed_anywhere_leaves_whole_batches_and_can_continue(
    tmp_path: Path, deliver: Deliver, together: int
) -> None:
    deliveries = [deliver(offset) for offset in range(3_000)]
    fork, held = multiprocessing.get_context("fork"), 0
    written = fork.Value("q", 0, lock=False)

    def write_all() -> None:
        log = EventLog(tmp_path)
        for offset in range(0, len(deliveries), together):
            log.append(combine(deliveries[offset : offset + together]))
            written.value = offset

    for attempt in range(6):
        child = fork.Process(target=write_all)
        child.start()
        while child.is_alive() and written.value < held + 7 * (attempt + 1):
            time.sleep(0.0005)
        child.kill()
        child.join()
        held = EventLog(tmp_path).last_offset("e", 0)
        assert written.value <= held
        assert _ids(EventLog(tmp_path)) == _expected(range(held + 1))
    more = deliveries[held + 1 : held + 50]
    for delivery in more:
        EventLog(tmp_path).append(delivery)
    assert _ids(EventLog(tmp_path)) == _expected(range(held + 1 + len(more)))


@pytest.mark.usefixtures("flushing")
def test_a_combined_delivery_is_stored_as_its_batches(tmp_path: Path, deliver: Deliver) -> None:
    sent = [deliver(offset, rows) for offset, rows in enumerate([2, 3, 0, 1, 4, 2, 1])]
    log, other = EventLog(tmp_path), EventLog(tmp_path)
    for each, first, end in [(log, 0, 3), (other, 0, 5), (log, 2, 4), (other, 4, 7), (log, 3, 7)]:
        each.append(combine(sent[first:end]))
    assert [d.stamp for d in log.deliveries()] == [d.stamp for d in sent if d.table.num_rows]
    tables = [d.table for d in sent if d.table.num_rows]
    assert all(a.table.equals(b) for a, b in zip(log.deliveries(), tables, strict=True))
    log.flush()
    assert _parquet_rows(tmp_path) == 13


def test_a_crash_between_the_files_of_a_direct_flush_counts_nothing_twice(
    tmp_path: Path, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hours, two files: the process dies after the first one."""
    monkeypatch.setattr(segments, "DIRECT_FLUSH_ROWS", 3)
    combined = combine([deliver(1), deliver(3_600), deliver(3_601)])
    log = EventLog(tmp_path)
    log.append(deliver(0, rows=1))
    add, added = log.segments.files.add_sealed, list[SealedFile]()

    def die_at_the_second(file: SealedFile, content: pa.Buffer) -> None:
        if added:
            raise KeyboardInterrupt
        added.append(file)
        add(file, content)

    monkeypatch.setattr(log.segments.files, "add_sealed", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        log.append(combined)
    again = EventLog(tmp_path)
    assert again.last_offset("e", 0) == 1
    held = _expected(range(1), rows=1) + _expected(range(1, 2))
    assert _ids(again) == held
    again.append(combined)
    assert _ids(again) == sorted(held + _expected(range(3_600, 3_602)))
    assert [d.stamp.offset for d in again.deliveries()] == [0, 1, 3_600, 3_601]
    assert _parquet_rows(tmp_path) == 10


@pytest.mark.parametrize("crash", ["after the rename", "in mid-merge"])
def test_a_crash_during_a_flush_counts_nothing_twice(
    tmp_path: Path, deliver: Deliver, crash: str
) -> None:
    log = EventLog(tmp_path / "log")
    for offset in range(6):
        log.append(deliver(offset))
        if offset == 2 and crash == "in mid-merge":
            log.flush()
    shutil.copytree(tmp_path / "log", tmp_path / "before")
    log.flush()
    shutil.copytree(tmp_path / "before", tmp_path / "log", dirs_exist_ok=True)
    again = EventLog(tmp_path / "log")
    assert _ids(again) == _expected(range(6))
    assert [d.stamp.offset for d in again.deliveries()] == list(range(6))
    again.append(deliver(6))
    again.flush()
    assert _ids(again) == _expected(range(7))
    assert _parquet_rows(tmp_path / "log") == 21


@pytest.mark.usefixtures("flushing")
def test_deliveries_return_what_was_appended(tmp_path: Path, deliver: Deliver) -> None:
    log = EventLog(tmp_path)
    sent = [deliver(offset, rows, partition) for partition in (0, 1, 11) for offset, rows in
            enumerate([3, 1, 7, 2, 5])]  # fmt: skip
    for delivery in sent:
        log.append(delivery)
    got = list(log.deliveries())
    assert [d.stamp for d in got] == [d.stamp for d in sent]
    assert all(a.table.equals(b.table) for a, b in zip(got, sent, strict=True))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_at_least_once_delivery_gives_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, deliver: Deliver, data: st.DataObject
) -> None:
    """Restarts resume at any committed offset; flushes happen at any time."""
    directory = tmp_path_factory.mktemp("log")
    log, next_offset, delivered = EventLog(directory), 0, 0
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["append", "restart", "flush", "replay"]))
        if action == "flush":
            log.flush()
        if action in ("restart", "replay"):
            next_offset = data.draw(st.integers(0, next_offset))
        if action == "restart":
            log = EventLog(directory)
        for _ in range(data.draw(st.integers(0, 5))):
            log.append(deliver(next_offset, rows=next_offset % 4))
            next_offset += 1
        delivered = max(delivered, next_offset)
    expected = [f"e/0/{o}/{r}" for o in range(delivered) for r in range(o % 4)]
    assert _ids(log) == sorted(expected)


def test_a_flushed_log_is_plain_parquet(tmp_path: Path, deliver: Deliver) -> None:
    log = EventLog(tmp_path)
    for offset in range(5):
        log.append(deliver(offset))
    log.flush()
    assert _parquet_rows(tmp_path) == 15


def test_read_selects_by_time_and_kind_and_omits_duplicates(
    tmp_path: Path, event_table: Build
) -> None:
    log = EventLog(tmp_path)
    rows: list[dict[str, object]] = [
        {"kind": "play", "event_time_ms": 10, "event_id": "b"},
        {"kind": "play", "event_time_ms": 10, "event_id": "a"},
        {"kind": "like", "event_time_ms": 20, "event_id": "c"},
        {"kind": "like", "event_time_ms": 20, "event_id": "c", "duplicate": True},
        {"kind": "order", "event_time_ms": 30, "event_id": "d"},
    ]
    log.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), event_table(rows)))
    assert log.read()["event_id"].to_list() == ["a", "b", "c", "d"]
    assert log.read(since_ms=20, until_ms=30)["kind"].to_list() == ["like"]
    assert log.read(kinds=["order", "play"])["event_id"].to_list() == ["a", "b", "d"]
    assert log.read(duplicates=True).height == 5
    assert log.scan().select(pl.col("duplicate").sum()).collect().item() == 1


def test_an_empty_log_reads_as_no_rows(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "nothing")
    assert log.read().height == 0
    assert log.scan().collect().height == 0
    assert list(log.deliveries()) == []


@pytest.mark.usefixtures("flushing")
def test_an_erased_user_stays_erased_after_a_replay(tmp_path: Path, deliver: Deliver) -> None:
    log, other_process = EventLog(tmp_path), EventLog(tmp_path)
    for offset in range(7):
        log.append(deliver(offset))
    assert log.erase("u1", 10_000) == 7
    for offset in range(7, 11):
        other_process.append(deliver(offset))
    held = log.read()
    assert held.filter(pl.col("user_id") == "u1")["event_id"].to_list() == ["e/0/10/1"]
    assert held.filter(pl.col("user_id") != "u1").height == 22
    fresh = EventLog(tmp_path)
    for offset in range(11):
        fresh.append(deliver(offset, topic_id="later"))
    assert fresh.read().filter(pl.col("user_id") == "u1").height == 2
    on_disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*.arrow"))
    assert b"e/0/3/1" not in on_disk


def test_a_reader_beside_a_writer_sees_whole_prefixes(
    tmp_path: Path, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "FLUSH_FILES", 3)
    deliveries = [deliver(offset) for offset in range(400)]

    def write_all() -> None:
        log = EventLog(tmp_path)
        for delivery in deliveries:
            log.append(delivery)

    child = multiprocessing.get_context("fork").Process(target=write_all)
    child.start()
    heights = []
    while child.is_alive():
        ids = _ids(EventLog(tmp_path))
        assert ids == _expected(range(len(ids) // 3))
        heights.append(len(ids))
    child.join()
    assert _ids(EventLog(tmp_path)) == _expected(range(400))
    assert heights == sorted(heights)
