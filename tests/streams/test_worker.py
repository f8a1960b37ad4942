"""Laws of the worker on the embedded broker and on Apache Kafka, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Producer as RdProducer

from deploy.services import process
from deploy.services.tansu import Tansu
from streams.bus.contract import Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.contract.schema import from_ipc, to_ipc
from streams.contract.topics import TopicSpec
from streams.event_log import EventLog
from streams.workers.worker import Exit

Build = Callable[[list[dict[str, object]]], pa.Table]

ROOT = Path(__file__).parents[2]
SESSION_S = {"embedded_broker": 0.6, "kafka_broker": 6.0}
PARTITIONS = 2


@dataclass
class Bench:
    """One topic and its workers."""

    servers: str
    topic: str
    directory: Path
    session_s: float
    batch: Callable[[str], bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def make_topic(self) -> None:
        KafkaBus(self.servers).ensure_topics([TopicSpec(self.topic, PARTITIONS)])

    def send(self, names: list[str]) -> None:
        """One batch of three events per name, round-robin over partitions."""
        messages = [
            Outgoing(self.topic, self.batch(name), partition=number % PARTITIONS)
            for number, name in enumerate(names)
        ]
        producer = KafkaBus(self.servers).producer()
        producer.send(messages)
        producer.close()

    def start(self, *mode: str) -> subprocess.Popen[bytes]:
        script = ROOT / "tests" / "streams" / "worker_process.py"
        command = [sys.executable, str(script), f"w-{self.topic}", self.topic, self.servers,
                   str(self.directory), str(self.session_s), *mode]  # fmt: skip
        log = open(self.directory / "worker.log", "ab")  # noqa: SIM115
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.workers.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return self.workers[-1]

    def start_beside(self, mode: str) -> subprocess.Popen[bytes]:
        """A second member; returns when partitions were reassigned."""
        ready = self.directory / "ready"
        ready.unlink()
        worker = self.start(mode, "beside")
        deadline = time.monotonic() + 40
        while not ready.exists():
            assert time.monotonic() < deadline, self._report(0)
            time.sleep(0.02)
        return worker

    def handled(self) -> list[tuple[str, int, int]]:
        """(topic id, partition, offset) of every handled message so far, in order."""
        file = self.directory / "handled"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(e, int(p), int(o)) for e, p, o, _ in (line.split() for line in lines)]

    def await_handled(self, count: int, timeout_s: float = 40.0) -> None:
        """Until `count` different batches were handled."""
        deadline = time.monotonic() + timeout_s
        while len(set(self.handled())) < count:
            assert time.monotonic() < deadline, self._report(count)
            time.sleep(0.05)

    def names_in_log(self) -> list[str]:
        ids = EventLog(self.directory / "log").read()["event_id"].to_list()
        return sorted(ids)

    def _report(self, count: int) -> str:
        log = (self.directory / "worker.log").read_text()[-3_000:]
        return f"{len(set(self.handled()))} of {count} batches were handled\n{log}"


def _ids(names: list[str]) -> list[str]:
    return sorted(f"{name}/{row}" for name in names for row in range(3))


@pytest.fixture(scope="module")
def batch(event_table: Build) -> Callable[[str], bytes]:
    def build(name: str) -> bytes:
        table = event_table([{"event_id": f"{name}/{row}", "video_id": "v"} for row in range(3)])
        return to_ipc(table.combine_chunks().to_batches()[0])

    return build


@pytest.fixture
def open_bench(
    tmp_path: Path, unique: str, batch: Callable[[str], bytes]
) -> Iterator[Callable[[str, float], Bench]]:
    benches: list[Bench] = []

    def build(servers: str, session_s: float) -> Bench:
        benches.append(Bench(servers, f"worker-{unique}", tmp_path, session_s, batch))
        return benches[-1]

    yield build
    for worker in (worker for bench in benches for worker in bench.workers):
        worker.kill()
        worker.wait()


@pytest.fixture(params=SESSION_S)
def bench(request: pytest.FixtureRequest, open_bench: Callable[[str, float], Bench]) -> Bench:
    made = open_bench(request.getfixturevalue(request.param), SESSION_S[request.param])
    made.make_topic()
    return made


def test_a_killed_worker_loses_nothing_and_logs_nothing_twice(
    bench: Bench,
) -> None:
    names = [f"n{number}" for number in range(120)]
    bench.send(names)
    for reached in (20, 60):
        worker = bench.start("slow")
        bench.await_handled(reached)
        worker.kill()
        worker.wait()
    bench.start()
    bench.await_handled(len(names))
    assert bench.names_in_log() == _ids(names)
    for partition in range(PARTITIONS):
        offsets = {o for _, p, o in bench.handled() if p == partition}
        assert offsets == set(range(60))


def test_queued_messages_are_combined_in_order_and_a_kill_loses_none(bench: Bench) -> None:
    names = [f"n{number}" for number in range(400)]
    bench.send(names)
    worker = bench.start("combine")
    bench.await_handled(60)
    worker.kill()
    worker.wait()
    bench.start("combine")
    bench.await_handled(len(names))
    sizes = [int(line) for line in (bench.directory / "combined").read_text().split()]
    assert max(sizes) > 1
    for partition in range(PARTITIONS):
        offsets = [o for _, p, o in bench.handled() if p == partition]
        first_seen = list(dict.fromkeys(offsets))
        assert first_seen == sorted(first_seen)
        assert len(first_seen) == len(names) // PARTITIONS


@pytest.mark.parametrize("mode", ["slow", "combine"])
def test_rebalances_end_no_worker_and_skip_nothing(
    kafka_broker: str, open_bench: Callable[[str, float], Bench], mode: str
) -> None:
    """A second worker joins and ends repeatedly, while both lag.

    On Apache Kafka only: the embedded broker may never reassign the partitions of a group whose
    leader left."""
    bench = open_bench(kafka_broker, SESSION_S["kafka_broker"])
    bench.make_topic()
    worker, sent = bench.start(mode), 0
    for cycle in range(3):
        names = [f"n{cycle}-{number}" for number in range(160)]
        bench.send(names)
        sent += len(names)
        bench.await_handled(sent - 120)
        beside = bench.start_beside(mode)
        bench.await_handled(sent - 20)
        beside.send_signal(signal.SIGTERM)
        assert beside.wait(20) == Exit.STOPPED
    bench.await_handled(sent)
    assert worker.poll() is None, "the worker ended in a rebalance"
    for partition in range(PARTITIONS):
        offsets = {o for _, p, o in bench.handled() if p == partition}
        assert offsets == set(range(sent // PARTITIONS))
    if mode != "combine":
        assert len(set(bench.names_in_log())) == len(bench.names_in_log()) == 3 * sent


def test_a_failing_batch_ends_the_worker_and_is_not_skipped(
    bench: Bench,
) -> None:
    names = [f"n{number}" for number in range(6)]
    bench.send(names)
    assert bench.start("fail").wait(40) == Exit.GAVE_UP
    assert bench.handled() == []
    (bench.directory / "repaired").touch()
    worker = bench.start("fail")
    bench.await_handled(len(names))
    worker.terminate()
    assert worker.wait(20) == Exit.STOPPED
    for partition in range(PARTITIONS):
        assert [o for _, p, o in bench.handled() if p == partition] == [0, 1, 2]


def test_sigterm_ends_a_worker_that_retries(bench: Bench) -> None:
    bench.send(["a", "b"])
    worker = bench.start("fail")
    deadline = time.monotonic() + 40
    while "retry in" not in (bench.directory / "worker.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == Exit.STOPPED
    assert bench.handled() == []


def test_after_sigterm_the_next_worker_resumes_at_the_commit(bench: Bench) -> None:
    bench.send(["a", "b"])
    first = bench.start()
    bench.await_handled(2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == Exit.STOPPED
    bench.start()
    bench.send(["c", "d"])
    bench.await_handled(4)
    assert [offset for _, _, offset in bench.handled()] == [0, 0, 1, 1]


def test_a_foreign_message_is_named_and_the_worker_goes_on(bench: Bench) -> None:
    bench.send(["a"])
    KafkaBus(bench.servers).producer().send([Outgoing(bench.topic, b"not arrow", partition=0)])
    bench.send(["b"])
    bench.start()
    bench.await_handled(3)
    assert bench.names_in_log() == _ids(["a", "b"])
    assert f"{bench.topic}/0/1 is skipped" in (bench.directory / "worker.log").read_text()


def test_a_batch_of_a_newer_version_ends_the_worker_and_is_not_skipped(bench: Bench) -> None:
    bench.send(["a"])
    table = from_ipc(bench.batch("newer"))
    kinds = pa.array([200] * table.num_rows, pa.uint8())
    table = table.set_column(
        table.schema.get_field_index("kind"), table.schema.field("kind"), kinds
    )
    newer = to_ipc(table.combine_chunks().to_batches()[0])
    KafkaBus(bench.servers).producer().send([Outgoing(bench.topic, newer, partition=0)])
    bench.send(["b"])
    assert bench.start().wait(40) == Exit.GAVE_UP
    assert bench.names_in_log() == _ids(["a"])
    log = (bench.directory / "worker.log").read_text()
    assert f"{bench.topic}[0]@1" in log
    assert "upgrade this process" in log


def test_aborted_transactions_are_not_handled_and_gaps_skip_nothing(
    kafka_broker: str, open_bench: Callable[[str, float], Bench]
) -> None:
    bench = open_bench(kafka_broker, SESSION_S["kafka_broker"])
    bench.make_topic()
    producer = RdProducer(
        {"bootstrap.servers": kafka_broker, "transactional.id": f"t-{bench.topic}"}
    )
    producer.init_transactions(20)
    committed = [f"n{number}" for number in range(30) if number % 3]
    for number in range(30):
        producer.begin_transaction()
        producer.produce(bench.topic, bench.batch(f"n{number}"), partition=0)
        producer.flush()
        if number % 3:
            producer.commit_transaction(20)
        else:
            producer.abort_transaction(20)
    worker = bench.start("slow")
    bench.await_handled(7)
    worker.kill()
    worker.wait()
    bench.start("slow")
    bench.await_handled(len(committed))
    assert bench.names_in_log() == _ids(committed)


def test_a_recreated_topic_overwrites_nothing_and_is_not_ignored(
    tmp_path: Path, free_port: int, open_bench: Callable[[str, float], Bench]
) -> None:
    broker = Tansu(tmp_path, name="mortal", port=free_port)
    child = process.start(broker, 30.0)
    bench = open_bench(broker.bootstrap_servers, 0.6)
    bench.make_topic()
    before = [f"before{number}" for number in range(10)]
    bench.send(before)
    worker = bench.start()
    bench.await_handled(10)
    os.kill(child.pid, signal.SIGKILL)
    child.stop()
    child = process.start(broker, 30.0)
    try:
        bench.make_topic()
        after = [f"after{number}" for number in range(40)]
        bench.send(after)
        assert worker.wait(40) == Exit.TOPIC_RECREATED
        bench.start()
        bench.await_handled(50)
        assert bench.names_in_log() == _ids(before + after)
        assert len({topic_id for topic_id, _, _ in bench.handled()}) == 2
    finally:
        child.stop()
