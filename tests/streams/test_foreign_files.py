"""Foreign and torn files beside the log's own: each is named once, and the rest is read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from log_batches import (
    T0,
    BatchMaker,
    append_hours,
    event_ids,
    parquet_files,
    shrink_files,
)

from streams import telemetry
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import HOUR_MS
from streams.contract.impression import Impression, sign
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.feedback.store import FeedbackStore, read_feedback
from streams.storage import compaction

HOURS = 3
KEY = b"k" * 32


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_named", set())


@pytest.fixture
def log(
    tmp_path: Path,
    event_table: Callable[[list[dict[str, object]]], pa.Table],
    monkeypatch: pytest.MonkeyPatch,
) -> EventLog:
    """Three hours in many small files, some of them write-ahead."""
    shrink_files(monkeypatch)
    log = EventLog(tmp_path)
    append_hours(log, BatchMaker(event_table), HOURS)
    return log


def _hour(log: EventLog) -> Path:
    return parquet_files(log)[0].parent


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _damaged_inside(path: Path) -> None:
    """The footer is whole; a column's bytes are not."""
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)


FOREIGN: dict[str, Callable[[EventLog], Path]] = {
    "_SUCCESS": lambda log: _hour(log) / "_SUCCESS",
    "notes": lambda log: _hour(log) / "notes.txt",
    "an empty parquet": lambda log: _hour(log) / "empty.parquet",
    "spark's parquet": lambda log: _hour(log) / "part-00000-1-2-3.snappy.parquet",
    "nearly ours": lambda log: _hour(log) / f"{parquet_files(log)[0].name}.bak",
    "in another folder": lambda log: log.directory / "parquet" / "hour=never" / "x.parquet",
    "beside the write-ahead files": lambda log: (
        next((log.directory / "tail").glob("*/0000")) / "notes.arrow"
    ),
}


@pytest.mark.parametrize("place", FOREIGN.values(), ids=list(FOREIGN))
def test_a_foreign_file_is_skipped_by_every_reader_and_writer(
    log: EventLog, place: Callable[[EventLog], Path], make: BatchMaker
) -> None:
    before = event_ids(log)
    path = place(log)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    other = EventLog(log.directory)
    assert event_ids(other) == before
    assert sum(1 for _ in other.deliveries()) == 2 * 9 * HOURS
    other.append(make(1_000, T0 + 10 * HOUR_MS))
    other.flush()
    compaction.compact(other.segments, T0 + 20 * HOUR_MS)
    assert compaction.log_stats(other.segments).rows == len(before) + 4
    assert other.erase("u1", T0 + 20 * HOUR_MS) == (len(before) + 4) // 4
    assert compaction.retain(other.segments, T0 + HOUR_MS) > 0
    assert path.exists()


@pytest.fixture
def make(event_table: Callable[[list[dict[str, object]]], pa.Table]) -> BatchMaker:
    return BatchMaker(event_table)


def test_a_foreign_file_is_named_once(log: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    (_hour(log) / "_SUCCESS").touch()
    counted = telemetry.SET_ASIDE.labels("foreign_file")._value.get()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            log.read()
    assert sum("_SUCCESS" in record.getMessage() for record in caplog.records) == 1
    assert telemetry.SET_ASIDE.labels("foreign_file")._value.get() == counted + 1


@pytest.mark.parametrize(
    "damage", [_torn, lambda path: path.write_bytes(b""), _damaged_inside],
    ids=["torn", "empty", "inside"],
)  # fmt: skip
def test_a_damaged_file_is_named_and_the_rest_is_read(
    log: EventLog,
    make: BatchMaker,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    before, path = event_ids(log), parquet_files(log)[0]
    lost = set(pl.read_parquet(path)["event_id"])
    damage(path)
    other = EventLog(log.directory)
    with caplog.at_level(logging.WARNING):
        assert event_ids(other) == sorted(set(before) - lost)
    assert str(path) in caplog.text
    other = EventLog(log.directory)
    assert sum(d.table.num_rows for d in other.deliveries()) == len(before) - len(lost)
    other.append(make(1_000, T0 + 10 * HOUR_MS))
    compaction.compact(other.segments, T0 + 20 * HOUR_MS)
    assert len(event_ids(other)) == len(before) - len(lost) + 4
    other.erase("u1", T0 + 20 * HOUR_MS)
    assert path.exists()


def test_a_torn_write_ahead_file_is_kept_and_the_rest_is_sealed(
    tmp_path: Path, make: BatchMaker
) -> None:
    log = EventLog(tmp_path)
    for offset in range(3):
        log.append(make(offset, T0 + offset))
    torn = sorted(tmp_path.rglob("*.arrow"))[1]
    torn.write_bytes(torn.read_bytes()[:40])
    other = EventLog(tmp_path)
    assert len(event_ids(other)) == 8
    other.append(make(3, T0 + 3))
    other.flush()
    assert len(event_ids(EventLog(tmp_path))) == 12
    assert [path.name for path in tmp_path.rglob("*.damaged")] == [f"{torn.name}.damaged"]


@pytest.mark.parametrize(("asked", "named"), [(1 << 60, True), (1 << 30, False)])
def test_a_size_that_no_file_has_is_damage_and_a_full_memory_is_not(
    tmp_path: Path, make: BatchMaker, monkeypatch: pytest.MonkeyPatch, asked: int, named: bool
) -> None:
    """Torn bytes made Arrow ask for 2,478,227,094,008,658,752 bytes, and every reader ended."""
    log = EventLog(tmp_path)
    log.append(make(0, T0))

    def fail(*_: object) -> pa.Table:
        raise pa.ArrowMemoryError(f"malloc of size {asked} failed")

    monkeypatch.setattr("streams.storage.segment_reader.from_ipc", fail)
    if named:
        assert event_ids(log) == []
    else:
        with pytest.raises(MemoryError):
            log.read()


def test_an_error_that_is_not_the_file_s_is_raised(
    log: EventLog, make: BatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(make(1_000, T0))

    def too_many(_: object) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", too_many)
    with pytest.raises(OSError, match="Too many open files"):
        log.read()


STORED_ERASURES: dict[str, bytes] = {
    "beyond int64": json.dumps({"x": 10**19, "u1": T0 + 9 * HOUR_MS}).encode(),
    "wrong types": json.dumps({"x": "1", "y": None, "z": 1.5, "u1": T0 + 9 * HOUR_MS}).encode(),
}


@pytest.mark.parametrize("stored", STORED_ERASURES.values(), ids=list(STORED_ERASURES))
def test_stored_erasures_without_bounds_stop_no_append(
    tmp_path: Path, make: BatchMaker, stored: bytes
) -> None:
    """As written before erasures had bounds."""
    (tmp_path / "erased.json").write_bytes(stored)
    log = EventLog(tmp_path)
    log.append(make(0, T0))
    assert len(event_ids(log)) == 3
    log.erase("u2", T0 + HOUR_MS)
    assert len(event_ids(EventLog(tmp_path))) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"null"])
def test_a_damaged_file_of_erasures_is_kept(
    tmp_path: Path, make: BatchMaker, content: bytes
) -> None:
    (tmp_path / "erased.json").write_bytes(content)
    (tmp_path / "dropped.json").write_bytes(content)
    log = EventLog(tmp_path)
    log.append(make(0, T0))
    log.erase("u1", T0 + HOUR_MS)
    assert len(event_ids(log)) == 3
    assert log.begins_at_ms() is None
    assert (tmp_path / "erased.json.damaged").read_bytes() == content


def test_feedback_is_read_back_beside_foreign_and_torn_files(
    tmp_path: Path, event_table: Callable[[list[dict[str, object]]], pa.Table]
) -> None:
    def store() -> FeedbackStore:
        return FeedbackStore(tmp_path, key=KEY, windows_ms={"play": 10})

    def join(offset: int, at_ms: int, number: int) -> None:
        impression = Impression(
            request_id=f"r{number}", surface="feed", user_id="u", video_id="v", slot=0,
            propensity=1.0, release="rel", served_at_ms=at_ms,
        )  # fmt: skip
        shown = {
            "kind": "shown", "user_id": "u", "video_id": "v", "event_time_ms": at_ms + 1,
            "impression": sign(impression, KEY),
        }  # fmt: skip
        store().join(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), event_table([shown])))
        store().segments.flush()

    for number in range(3):
        join(number, T0 + number * HOUR_MS, number)
    first, *_ = sorted(tmp_path.rglob("*.parquet"))
    _torn(first)
    (first.parent / "_SUCCESS").touch()
    join(3, T0 + 3 * HOUR_MS, 3)
    found = read_feedback(tmp_path)["impression_id"].to_list()
    assert [each.split(":")[0] for each in found] == ["r1", "r2", "r3"]
