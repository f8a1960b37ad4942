"""The ingest service is killed with SIGKILL during its transactions, on Apache Kafka.

Kills are timed by messages written, so that they interrupt work on any machine. Their seed is
named when the law fails; set TIDEMILL_SEED to repeat it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl
import pytest
from confluent_kafka import Consumer, TopicPartition

from streams.bus.contract import Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.bus.polled import Record
from streams.contract.schema import from_ipc
from streams.contract.topics import (
    ADMITTED,
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    ENTITY_TOPIC,
    EVENTS_BY_USER,
    partition_of,
    topic_specs,
)
from streams.ingest import dead_letters

PARTITIONS, EVENTS, KILLS = 2, 24_000, 8
PROGRAM = Path(__file__).with_name("batcher_process.py")


@pytest.mark.parametrize("replicas", [1, 2], ids=["sole batcher", "replica"])
def test_kills_lose_and_double_nothing(replicas: int, wiped_kafka: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
    rng = random.Random(seed)
    bus = KafkaBus(wiped_kafka)
    bus.ensure_topics(topic_specs(PARTITIONS))
    good, bad, stream = _stream(rng)
    share = len(stream) // KILLS + 1
    batcher = BatcherProcess(wiped_kafka, uuid.uuid4().hex, tmp_path, replicas)
    for number in range(KILLS):  # each process has new work, however fast the last one was
        _send(bus, stream[number * share : (number + 1) * share])
        _run_and_kill(batcher, rng)
    _run_to_end(bus, batcher, len(good) + len(good) // 100)

    where = f"seed {seed}"
    rows = _rows(bus, EVENTS_BY_USER)
    assert len(rows) == len(good) + len(good) // 100, where
    counted = rows.filter(~pl.col("duplicate"))["event_id"].to_list()
    assert Counter(counted) == Counter(good), where
    assert Counter(_rows(bus, ENTITY_TOPIC["video"])["event_id"].to_list()) == Counter(good), where
    assert rows["at"].to_list() == [partition_of(u, PARTITIONS) for u in rows["user_id"]], where
    dead = [dead_letters.parse_dead_letter(r).record.value for r in _records(bus, BEHAVIOUR_DEAD)]
    assert Counter(dead) == Counter(bad), where
    left = sum(_uncommitted(bus, wiped_kafka, t) for t in (ADMITTED, EVENTS_BY_USER))
    assert left > 0, f"{where}: no kill interrupted a transaction, so this run proves nothing"


def _stream(rng: random.Random) -> tuple[list[str], list[bytes], list[bytes]]:
    """Ids of good events, malformed values, and both in the order of sending: shuffled, then a
    hundredth of the good ones again."""
    now_ms = time.time_ns() // 1_000_000
    good = [f"e{i:05d}" for i in range(EVENTS)]
    bad = [f"malformed {i:03d}".encode() for i in range(EVENTS // 200)]
    values = [
        orjson.dumps(
            {
                "event_id": event_id,
                "user_id": f"u{int(event_id[1:]) % 997}",
                "kind": "play",
                "video_id": f"v{int(event_id[1:]) % 311}",
                "event_time_ms": now_ms - 1_000,
            }
        )
        for event_id in good
    ]
    stream = [*values, *bad]
    rng.shuffle(stream)
    stream += rng.sample(values, EVENTS // 100)
    return good, bad, stream


def _send(bus: KafkaBus, values: list[bytes]) -> None:
    messages = [Outgoing(BEHAVIOUR, v, partition=i % PARTITIONS) for i, v in enumerate(values)]
    bus.producer().send(messages)


@dataclass(frozen=True)
class BatcherProcess:
    """How to start the ingest service, and the topic that it writes first."""

    bootstrap: str
    group: str
    folder: Path
    replicas: int

    @property
    def topic(self) -> str:
        return EVENTS_BY_USER if self.replicas == 1 else ADMITTED


def _start(batcher: BatcherProcess) -> subprocess.Popen[bytes]:
    folder = batcher.folder
    (folder / "ready").unlink(missing_ok=True)
    argv = [batcher.bootstrap, batcher.group, str(folder), str(batcher.replicas)]
    child = subprocess.Popen([sys.executable, str(PROGRAM), *argv], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "ready").exists():
        assert child.poll() is None, "it ended during its start"
        assert time.monotonic() < deadline, "it did not start within 60 s"
        time.sleep(0.02)
    return child


def _run_and_kill(batcher: BatcherProcess, rng: random.Random) -> None:
    """Kills it while it writes, after at most ten messages."""
    own = {"group.id": "watch", "isolation.level": "read_uncommitted"}
    watch = Consumer({"bootstrap.servers": batcher.bootstrap, **own})
    wanted = _written(watch, batcher.topic) + rng.randint(1, 10)
    child = _start(batcher)
    deadline = time.monotonic() + 60
    while _written(watch, batcher.topic) < wanted:
        assert child.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "it wrote too little within 60 s"
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    watch.close()


def _written(watch: Consumer, topic: str) -> int:
    """Messages in the topic, committed or not."""
    ends = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    return sum(int(watch.get_watermark_offsets(end, timeout=10)[1]) for end in ends)


def _run_to_end(bus: KafkaBus, batcher: BatcherProcess, expected: int) -> None:
    child = _start(batcher)
    deadline = time.monotonic() + 90
    try:
        while len(_rows(bus, EVENTS_BY_USER)) < expected and time.monotonic() < deadline:
            assert child.poll() is None, "it ended by itself"
            time.sleep(0.3)
        time.sleep(0.5)  # for surplus messages to show up
    finally:
        child.kill()
        child.wait(10)


def _records(bus: KafkaBus, topic: str) -> list[Record]:
    ends = bus.ends(topic).items()
    return [record for p, (start, stop) in ends for record in bus.scan(topic, p, start, stop)]


def _rows(bus: KafkaBus, topic: str) -> pl.DataFrame:
    tables = [
        pl.DataFrame(from_ipc(r.value or b"")).with_columns(at=r.partition)
        for r in _records(bus, topic)
    ]
    return pl.concat(tables) if tables else pl.DataFrame()


def _uncommitted(bus: KafkaBus, bootstrap: str, topic: str) -> int:
    """Messages in `topic` of no committed transaction."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "isolation.level": "read_uncommitted",
            "enable.auto.commit": False,
        }
    )
    reader.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    found = 0
    while messages := reader.consume(1_000, 1.5):
        found += sum(message.error() is None for message in messages)
    reader.close()
    return found - len(_records(bus, topic))
