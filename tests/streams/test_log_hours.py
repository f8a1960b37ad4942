"""Laws of hours, compaction and retention: what any reader of Parquet sees is the log."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.clock import DAY_MS, HOUR_MS, ManualClock
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.storage import compaction as upkeep
from streams.storage import segments
from streams.storage.segment_files import OldLayout, hour_of, start_of

Build = Callable[[list[dict[str, object]]], pa.Table]
Deliver = Callable[..., Delivery]

T0 = 1_767_225_600_000  # 2026-01-01 00:00 UTC
BIG_HOUR = hour_of(T0 + 10**11)


@pytest.fixture(scope="session")
def arrive(event_table: Build) -> Deliver:
    """A batch of four events that arrived at `at_ms`; one of them is late by `late_ms`."""

    def make(
        offset: int,
        at_ms: int,
        partition: int = 0,
        epoch: str = "e",
        late_ms: int = 50,
        rows: int = 4,
    ) -> Delivery:
        events: list[dict[str, object]] = [
            {
                "event_id": f"{epoch}/{partition}/{offset}/{row}",
                "user_id": f"u{row}",
                "event_time_ms": at_ms - (late_ms if row == 1 else row),
                "ingested_at_ms": at_ms,
                "video_id": "v",
            }
            for row in range(rows)
        ]
        return Delivery(EVENTS_BY_USER, Stamp(epoch, partition, offset), event_table(events))

    return make


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "GATHER_FILES", 3)
    monkeypatch.setattr(upkeep, "FILE_ROWS", 40)
    monkeypatch.setattr(upkeep, "OPEN_FILES", 4)


def _hours_of_work(log: EventLog, arrive: Deliver, hours: int, each: int = 9) -> list[Delivery]:
    """Two partitions, `each` batches an hour and partition, late events among them."""
    sent = [
        arrive(
            hour * each + n, T0 + hour * HOUR_MS + n * 60_000, partition, late_ms=n * HOUR_MS // 2
        )
        for partition in (0, 1)
        for hour in range(hours)
        for n in range(each)
    ]
    for delivery in sent:
        log.append(delivery)
    return sent


def _ids(log: EventLog) -> list[str]:
    return sorted(log.read()["event_id"].to_list())


def _plain(directory: Path) -> pl.DataFrame:
    """What polars reads with nothing but the folder's name."""
    frame = pl.read_parquet(directory / "parquet/**/*.parquet", hive_partitioning=True)
    return frame.sort("event_time_ms", "event_id")


def _by_duckdb(directory: Path, where: str = "true") -> pl.DataFrame:
    files = f"'{directory}/parquet/**/*.parquet'"
    query = f"select * from read_parquet({files}, hive_partitioning=true) where {where}"
    return duckdb.sql(query).pl().sort("event_time_ms", "event_id")


def _files(log: EventLog) -> list[Path]:
    return sorted(log.directory.rglob("*.parquet"))


def _as_sent(log: EventLog, sent: list[Delivery]) -> bool:
    got = list(log.deliveries())
    wanted = sorted(sent, key=lambda delivery: delivery.stamp)
    return [d.stamp for d in got] == [d.stamp for d in wanted] and all(
        a.table.equals(b.table) for a, b in zip(got, wanted, strict=True)
    )


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("compacted", [False, True])
def test_polars_and_duckdb_read_what_the_log_reads(
    tmp_path: Path, arrive: Deliver, compacted: bool
) -> None:
    log = EventLog(tmp_path)
    _hours_of_work(log, arrive, hours=4)
    log.append(arrive(0, T0, epoch="second-epoch_/=%"))
    log.gather()
    if compacted:
        assert upkeep.compact(log.segments, T0 + 9 * HOUR_MS).files
    own = log.scan().collect().sort("event_time_ms", "event_id")
    for plain in (_plain(tmp_path), _by_duckdb(tmp_path)):
        assert_frame_equal(plain.drop("hour"), own)
        assert plain["hour"].n_unique() == 4
    assert_frame_equal(
        log.read().drop("kind"), own.filter(~pl.col("duplicate")).drop("kind"), check_row_order=True
    )
    hour = hour_of(T0 + 2 * HOUR_MS)
    since = _by_duckdb(tmp_path, f"hour >= {hour}").drop("hour")
    assert_frame_equal(since, own.filter(pl.col("ingested_at_ms") >= T0 + 2 * HOUR_MS))


@pytest.mark.usefixtures("small_files")
def test_no_row_of_an_hour_is_younger_than_it_and_live_ones_are_of_it(
    tmp_path: Path, arrive: Deliver
) -> None:
    log = EventLog(tmp_path)
    _hours_of_work(log, arrive, hours=3)
    ahead = arrive(100, T0 + 4 * HOUR_MS - 1, late_ms=-60_000)  # a client's clock runs ahead
    log.append(ahead)
    log.gather()
    upkeep.compact(log.segments, T0 + 9 * HOUR_MS)
    for hour, rows in _plain(tmp_path).group_by("hour"):
        start = start_of(int(str(hour[0])))
        assert rows.select(pl.max_horizontal("event_time_ms", "ingested_at_ms").max()).item() < (
            start + HOUR_MS
        )
        assert (
            rows.filter(~pl.col("event_id").str.starts_with("e/0/100/"))["ingested_at_ms"]
            .is_between(start, start + HOUR_MS, closed="left")
            .all()
        )


@pytest.mark.usefixtures("small_files")
def test_a_read_since_opens_no_earlier_hour(tmp_path: Path, arrive: Deliver) -> None:
    log = EventLog(tmp_path)
    _hours_of_work(log, arrive, hours=5)
    since = T0 + 3 * HOUR_MS
    wanted = log.read(since_ms=since)
    assert 0 < wanted.height < log.read().height
    for hour, folder in log.segments.files.hours():
        if hour < hour_of(since):
            for path in folder.iterdir():
                path.write_bytes(b"nobody reads this")
    assert log.read(since_ms=since).equals(wanted)
    with pytest.raises(pl.exceptions.ComputeError):
        log.read()


def test_loaded_history_is_not_a_file_for_every_hour(tmp_path: Path, event_table: Build) -> None:
    log = EventLog(tmp_path)
    for offset in range(50):
        days = [T0 - (400 - 8 * offset - day) * DAY_MS for day in range(8)]
        rows = [{"event_id": f"{t}", "event_time_ms": t, "ingested_at_ms": t} for t in days]
        log.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), event_table(rows)))
    log.gather()
    assert len(_files(log)) == 1
    assert log.read(since_ms=T0 - 8 * DAY_MS).height == 8
    assert [d.stamp.offset for d in log.deliveries()] == list(range(50))


@pytest.mark.usefixtures("small_files")
def test_compaction_changes_files_and_nothing_else(tmp_path: Path, arrive: Deliver) -> None:
    log = EventLog(tmp_path)
    sent = _hours_of_work(log, arrive, hours=3)
    log.gather()
    before, files = log.scan().collect().sort("partition", "offset", "row"), len(_files(log))
    told: list[float] = []
    done = upkeep.compact(log.segments, T0 + 9 * HOUR_MS, lambda share, _: told.append(share))
    assert (done.files, done.into, done.rows) == (files, 6, before.height)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(_files(log)) == 6
    assert log.scan().collect().sort("partition", "offset", "row").equals(before)
    assert _as_sent(log, sent)
    for path in _files(log):
        assert pl.read_parquet(path, hive_partitioning=False)["event_time_ms"].is_sorted()
    assert upkeep.compact(log.segments, T0 + 9 * HOUR_MS).files == 0
    for delivery in sent:
        EventLog(tmp_path).append(delivery)
    assert _as_sent(log, sent)


@pytest.mark.usefixtures("small_files")
def test_an_hour_still_written_waits_until_it_has_many_files(
    tmp_path: Path, arrive: Deliver
) -> None:
    log, offset = EventLog(tmp_path), 0
    for files, merged in [(3, 0), (4, 4), (4, 0)]:
        while len(_files(log)) < files:
            log.append(arrive(offset, T0 + offset, rows=1))
            offset += 1
        assert upkeep.compact(log.segments).files == merged
    assert _ids(log) == sorted(f"e/0/{n}/0" for n in range(offset))


@pytest.mark.usefixtures("small_files")
def test_a_compaction_cut_short_counts_nothing_twice(tmp_path: Path, arrive: Deliver) -> None:
    """Killed between the rename and the removals, for any of its merges."""
    log = EventLog(tmp_path / "log")
    sent = _hours_of_work(log, arrive, hours=2)
    log.gather()
    shutil.copytree(tmp_path / "log", tmp_path / "before")
    upkeep.compact(log.segments, T0 + 9 * HOUR_MS)
    shutil.copytree(tmp_path / "before", tmp_path / "log", dirs_exist_ok=True)
    again = EventLog(tmp_path / "log")
    assert _as_sent(again, sent)
    assert again.read().height == 4 * len(sent)
    assert again.erase("u2", T0 + DAY_MS) == len(sent)
    assert again.read().height == _plain(tmp_path / "log").height == 3 * len(sent)


@pytest.mark.usefixtures("small_files")
def test_a_filing_cut_short_counts_nothing_twice_whatever_was_erased_since(
    tmp_path: Path, arrive: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    times = [T0 + HOUR_MS - 1, T0 + HOUR_MS, T0 + HOUR_MS + 1]
    with monkeypatch.context() as crash:
        crash.setattr(type(log.segments.files), "mark_filed", lambda *_: 1 / 0)
        for offset, at_ms in enumerate(times):
            if offset < 2:
                log.append(arrive(offset, at_ms))
        with pytest.raises(ZeroDivisionError):
            log.append(arrive(2, times[2]))
    again = EventLog(tmp_path)
    everything = [f"e/0/{offset}/{row}" for offset in range(3) for row in range(4)]
    assert _ids(again) == everything
    assert again.erase("u0", T0 + DAY_MS) == 3
    for offset in range(7):
        again.append(arrive(offset, T0 + HOUR_MS + offset))
    held = [f"e/0/{offset}/{row}" for offset in range(7) for row in range(1, 4)]
    assert _ids(again) == held
    again.gather()
    assert sorted(_plain(tmp_path)["event_id"]) == held


@pytest.mark.usefixtures("small_files")
def test_writer_compaction_and_reader_beside_each_other(tmp_path: Path, arrive: Deliver) -> None:
    """The compaction is killed again and again; the reader sees whole prefixes."""
    sent = [arrive(offset, T0 + offset * 97_000, rows=2) for offset in range(400)]

    def write_all() -> None:
        log = EventLog(tmp_path)
        for delivery in sent:
            log.append(delivery)
            time.sleep(0.002)

    def compact_on() -> None:
        log = EventLog(tmp_path)
        while True:
            upkeep.compact(log.segments)

    fork = multiprocessing.get_context("fork")
    writer, compaction = (
        fork.Process(target=write_all, daemon=True),
        fork.Process(target=compact_on, daemon=True),
    )
    writer.start()
    compaction.start()
    heights = []
    while writer.is_alive():
        ids = _ids(EventLog(tmp_path))
        assert ids == sorted(f"e/0/{o}/{r}" for o in range(len(ids) // 2) for r in range(2))
        heights.append(len(ids))
        if len(heights) % 5 == 0:
            compaction.kill()
            compaction.join()
            compaction = fork.Process(target=compact_on, daemon=True)
            compaction.start()
    compaction.kill()
    writer.join()
    log = EventLog(tmp_path)
    upkeep.compact(log.segments, T0 + DAY_MS)
    assert heights == sorted(heights)
    assert _as_sent(log, sent)
    # Eleven hours of 134 files as they were filed: 74 rows each, of which 40 go into one. How
    # full each is depends on when compactions came.
    assert len(_files(log)) <= 4 * 11


@pytest.mark.usefixtures("small_files")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_life_of_a_log_gives_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, arrive: Deliver, data: st.DataObject
) -> None:
    """Clocks that jump, restarts, replays, gathering, compaction and an erasure, in any order."""
    directory = tmp_path_factory.mktemp("log")
    log, sent, erased = EventLog(directory), [], False
    for _ in range(data.draw(st.integers(2, 14))):
        action = data.draw(
            st.sampled_from(["go on", "go on", "replay", "gather", "compact", "erase"])
        )
        if action == "go on":
            at_ms = T0 + data.draw(st.sampled_from([0, 1, 1, 2, 5])) * HOUR_MS
            for _ in range(data.draw(st.integers(1, 5))):
                sent.append(arrive(len(sent), at_ms, rows=len(sent) % 4))
                log.append(sent[-1])
        if action == "replay":
            log = EventLog(directory)
            for delivery in sent[data.draw(st.integers(0, max(0, len(sent) - 1))) :]:
                log.append(delivery)
        if action == "gather":
            log.gather()
        if action == "compact":
            upkeep.compact(log.segments, data.draw(st.sampled_from([None, T0 + DAY_MS])))
        if action == "erase":
            log.erase("u1", T0 + DAY_MS)
            erased = True
    held = [i for d in sent for i in d.table["event_id"].to_pylist()]
    expected = [i for i in held if not (erased and i.endswith("/1"))]
    assert _ids(log) == sorted(expected)
    assert [i for d in log.deliveries() for i in d.table["event_id"].to_pylist()] == expected
    log.gather()
    if expected:
        assert sorted(_plain(directory)["event_id"]) == sorted(expected)


@pytest.mark.usefixtures("small_files")
def test_retention_drops_whole_hours_and_tells_so(tmp_path: Path, arrive: Deliver) -> None:
    log = EventLog(tmp_path)
    sent = _hours_of_work(log, arrive, hours=4)
    assert log.begins_at_ms() is None
    assert upkeep.retain(log.segments, T0 - 1) == 0
    assert log.begins_at_ms() is None
    before = T0 + 2 * HOUR_MS
    old = [d for d in sent if d.table["ingested_at_ms"][0].as_py() < before]
    assert upkeep.retain(log.segments, before + 30 * 60_000) == 4 * len(old)
    assert log.begins_at_ms() == before
    assert {hour for hour, _ in log.segments.files.hours()} == {
        hour_of(before), hour_of(before + HOUR_MS)
    }  # fmt: skip
    kept = [d for d in sent if d not in old]
    for delivery in sent:
        log.append(delivery)
        EventLog(tmp_path).append(delivery)
    assert _as_sent(log, kept)
    assert upkeep.retain(log.segments, before + 30 * 60_000) == 0
    assert log.last_offset("e", 0) == 35


def test_retention_reaches_a_quiet_tail_and_never_what_is_young(
    tmp_path: Path, arrive: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    log.append(arrive(0, T0))
    log.append(arrive(1, T0 + 3 * HOUR_MS, late_ms=300 * DAY_MS))
    assert upkeep.retain(log.segments, T0 + 2 * HOUR_MS) == 0
    monkeypatch.setattr(upkeep, "_age_s", lambda _: 2 * upkeep.TAIL_AGE_S)
    assert upkeep.retain(log.segments, T0 + 2 * HOUR_MS) == 4
    assert _ids(log) == [f"e/0/1/{row}" for row in range(4)]


@pytest.mark.usefixtures("small_files")
def test_upkeep_runs_by_itself_and_outlives_a_full_disk(
    tmp_path: Path, arrive: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    _hours_of_work(log, arrive, hours=3)
    log.gather()
    fails = iter([True, False, False])

    class Stop:
        def __init__(self) -> None:
            self.rounds = 0

        def wait(self, _: float) -> bool:
            self.rounds += 1
            return self.rounds > 2

    whole = upkeep.retain

    def retain(*arguments: object) -> int:
        if next(fails):
            raise OSError(28, "No space left on device")
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(upkeep, "retain", retain)
    clock = ManualClock(T0 + DAY_MS + HOUR_MS)
    upkeep.keep([log.segments], clock, Stop(), retention_days=1)  # type: ignore[arg-type]
    assert log.begins_at_ms() == T0 + HOUR_MS
    assert log.read().height == 2 * 2 * 9 * 4
    assert len(_files(log)) == 4


def test_what_lies_there_is_told(tmp_path: Path, arrive: Deliver) -> None:
    log = EventLog(tmp_path)
    assert upkeep.extent(log.segments).rows == 0
    for offset in range(3):
        log.append(arrive(offset, T0 + offset * HOUR_MS))
    log.gather()
    log.append(arrive(3, T0 + 3 * HOUR_MS))
    found = upkeep.extent(log.segments)
    assert (found.rows, found.hours, found.files, found.waiting) == (16, 3, 3, 1)
    assert (found.oldest_ms, found.newest_ms) == (T0 - 50, T0 + 3 * HOUR_MS)
    assert found.places == [("e", 0)]
    assert found.size_bytes > 1_000


def test_an_earlier_layout_is_refused_rather_than_left_unread(tmp_path: Path) -> None:
    (tmp_path / "log" / "epoch" / "0000" / "tail").mkdir(parents=True)
    with pytest.raises(OldLayout, match=r"move .*/log away"):
        EventLog(tmp_path / "log")
