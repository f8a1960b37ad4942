"""A full disk: an append fails whole, the worker retries or stops, and nothing is lost.

The disk is full for one process only: RLIMIT_FSIZE fails its writes beyond a file size.
"""

from __future__ import annotations

import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from streams.bus.contract import Outgoing, Stamp
from streams.bus.delivery import Delivery, combine
from streams.bus.kafka.bus import KafkaBus
from streams.contract.schema import to_ipc
from streams.contract.topics import EVENTS_BY_USER, TopicSpec
from streams.event_log import EventLog
from streams.storage import compaction, segments
from streams.workers.worker import Exit

Build = Callable[[list[dict[str, object]]], pa.Table]

ROOT = Path(__file__).parents[2]
SPACE = 64_000  # the largest file, in bytes, while the disk is full
ROWS = 3_000  # of a batch that does not fit


@pytest.fixture(scope="module")
def batch(event_table: Build) -> Callable[[int], pa.Table]:
    """A batch of more than SPACE bytes: its ids do not compress."""

    def build(number: int) -> pa.Table:
        ids = [f"{number}/{row}/{secrets.token_hex(8)}" for row in range(ROWS)]
        return event_table([{"event_id": each, "video_id": "v"} for each in ids])

    return build


def _payload(table: pa.Table) -> bytes:
    payload = to_ipc(table.combine_chunks().to_batches()[0])
    assert len(payload) > SPACE
    return payload


def _fill(pid: int = 0, most: int = SPACE) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


@contextmanager
def full_disk(most: int = SPACE) -> Iterator[None]:
    _fill(most=most)
    try:
        yield
    finally:
        _fill(most=resource.RLIM_INFINITY)


def _written(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.rglob("*") if p.is_file() and p.name != ".lock")


def test_an_append_without_space_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, batch: Callable[[int], pa.Table]
) -> None:
    log = EventLog(tmp_path)
    first, second = batch(0), batch(1)
    log.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, 0), first))
    before = _written(tmp_path)
    with full_disk():
        for _ in range(3):
            with pytest.raises(OSError, match="too large"):
                log.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, 1), second))
        assert _written(tmp_path) == before
        assert log.last_offset("e", 0) == 0
        assert log.read().height == ROWS
    log.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, 1), second))
    assert [d.table for d in log.deliveries()] == [first, second]


def test_batches_that_fit_no_parquet_file_stay_write_ahead_files(
    tmp_path: Path, batch: Callable[[int], pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    small = [batch(number).slice(0, 900) for number in range(5)]
    one_batch = len(to_ipc(small[0].combine_chunks().to_batches()[0])) + 1_000
    monkeypatch.setattr(segments, "DIRECT_FLUSH_ROWS", 1)
    with full_disk(one_batch):
        log.append(combine([_delivery(n, table) for n, table in enumerate(small[:4])]))
        assert not list(tmp_path.rglob("*.parquet"))
    assert [d.table for d in log.deliveries()] == small[:4]
    log.append(_delivery(4, small[4]))
    assert list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("*.arrow"))
    assert [d.table for d in log.deliveries()] == small


def _delivery(offset: int, table: pa.Table) -> Delivery:
    return Delivery(EVENTS_BY_USER, Stamp("e", 0, offset), table)


def test_a_flush_or_compaction_without_space_loses_nothing_and_fails_no_append(
    tmp_path: Path, batch: Callable[[int], pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    small = [batch(number).slice(0, 900) for number in range(9)]
    one_batch = len(to_ipc(small[0].combine_chunks().to_batches()[0])) + 1_000
    monkeypatch.setattr(segments, "FLUSH_FILES", 5)

    def append(numbers: range) -> None:
        for number in numbers:
            log.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, number), small[number]))

    with full_disk(one_batch):
        append(range(7))  # the fifth triggers a flush, which does not fit
        assert not list(tmp_path.rglob("*.parquet"))
    assert [d.table for d in log.deliveries()] == small[:7]
    append(range(7, 9))
    log.flush()
    with full_disk(one_batch), pytest.raises(OSError, match="too large"):
        compaction.compact(log.segments, 2 * 1_700_000_000_000)
    assert [d.table for d in log.deliveries()] == small
    assert compaction.compact(log.segments, 2 * 1_700_000_000_000).files
    assert [d.table for d in log.deliveries()] == small
    assert not [name for name in _written(tmp_path) if name.startswith(".")]


@dataclass
class Worker:
    """Worker processes that append one topic to one log."""

    servers: str
    topic: str
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> subprocess.Popen[bytes]:
        script = ROOT / "tests" / "streams" / "worker_process.py"
        command = [sys.executable, str(script), f"w-{self.topic}", self.topic, self.servers,
                   str(self.directory), "6.0"]  # fmt: skip
        log = open(self.directory / f"worker-{len(self.processes)}.log", "ab")  # noqa: SIM115
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return self.processes[-1]

    def output(self) -> str:
        return (self.directory / f"worker-{len(self.processes) - 1}.log").read_text()

    def handled(self) -> int:
        handled = self.directory / "handled"
        return len(set(handled.read_text().splitlines())) if handled.exists() else 0

    def until(self, holds: Callable[[], bool], timeout_s: float = 40.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, self.output()[-3_000:]
            time.sleep(0.02)


@pytest.fixture
def worker(kafka_broker: str, unique: str, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(kafka_broker, f"disk-{unique}", tmp_path)
    KafkaBus(kafka_broker).ensure_topics([TopicSpec(made.topic, 1)])
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def test_a_worker_retries_then_stops_and_its_successor_completes_the_delivery(
    worker: Worker, batch: Callable[[int], pa.Table]
) -> None:
    tables = [batch(number) for number in range(6)]
    producer = KafkaBus(worker.servers).producer()

    def send(numbers: range) -> None:
        producer.send([Outgoing(worker.topic, _payload(tables[n]), partition=0) for n in numbers])

    def held() -> list[pa.Table]:
        return [d.table for d in EventLog(worker.directory / "log").deliveries()]

    process = worker.start()
    send(range(2))
    worker.until(lambda: worker.handled() == 2)

    _fill(process.pid)  # space returns before the retries end
    send(range(2, 4))
    worker.until(lambda: "failed, retry in" in worker.output())
    assert held() == tables[:2]
    _fill(process.pid, resource.RLIM_INFINITY)
    worker.until(lambda: worker.handled() == 4)
    assert held() == tables[:4]

    _fill(process.pid)
    send(range(4, 6))
    assert process.wait(timeout=30) == Exit.GAVE_UP
    assert "File too large" in worker.output()
    assert held() == tables[:4]
    worker.start()
    worker.until(lambda: worker.handled() == 6)
    assert held() == tables
    producer.close()
