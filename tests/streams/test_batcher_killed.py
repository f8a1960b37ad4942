"""The ingest service is killed with SIGKILL during its transactions, on Apache Kafka.

Kills are timed by messages written, so that they interrupt work on any machine. They go on until
one of them has interrupted a transaction. Their seed is named when the law fails; set TIDEMILL_SEED
to repeat it. The long form, with all processes and servers, is `python -m benchmarks exactness`.
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
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.bus.contract import Outgoing, last_record_offsets
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

PARTITIONS, EVENTS = 2, 12_000
KILLS = range(3, 10)  # at least and at most
WITHIN_S = 180  # for each state that is awaited
PROGRAM = Path(__file__).with_name("batcher_process.py")


@pytest.mark.parametrize("replicas", [1, 2], ids=["sole batcher", "replica"])
def test_kills_lose_and_double_nothing(replicas: int, wiped_kafka: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
    rng = random.Random(seed)
    bus = KafkaBus(wiped_kafka)
    bus.ensure_topics(topic_specs(PARTITIONS))
    good, bad, stream = _stream(rng)
    share = len(stream) // KILLS.stop
    batcher = BatcherProcess(wiped_kafka, uuid.uuid4().hex, tmp_path, replicas)
    sent = kills = 0
    interrupted = False
    while kills < KILLS.start or (not interrupted and kills < KILLS.stop):
        # Each process has new work, however fast the last one was.
        _send(bus, stream[sent : sent + share])
        sent, kills = sent + share, kills + 1
        _run_and_kill(batcher, rng)
        interrupted |= any(bus.ends(t, uncommitted=True) != bus.ends(t) for t in batcher.topics)
    _send(bus, stream[sent:])
    _run_to_end(bus, batcher)

    where = f"seed {seed}"
    rows = _rows(bus, EVENTS_BY_USER)
    assert len(rows) == len(good) + len(good) // 100, where
    counted = rows.filter(~pl.col("duplicate"))["event_id"].to_list()
    assert Counter(counted) == Counter(good), where
    assert Counter(_rows(bus, ENTITY_TOPIC["video"])["event_id"].to_list()) == Counter(good), where
    assert rows["at"].to_list() == [partition_of(u, PARTITIONS) for u in rows["user_id"]], where
    dead = [dead_letters.parse_dead_letter(r).record.value for r in _records(bus, BEHAVIOUR_DEAD)]
    assert Counter(dead) == Counter(bad), where
    left = sum(_uncommitted(bus, wiped_kafka, topic) for topic in batcher.topics)
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
    """How to start the ingest service, and the topics that its transactions write."""

    bootstrap: str
    group: str
    folder: Path
    replicas: int

    @property
    def topics(self) -> list[str]:
        """The batcher's own first."""
        return [EVENTS_BY_USER] if self.replicas == 1 else [ADMITTED, EVENTS_BY_USER]

    def inputs(self) -> dict[str, str]:
        """Role of each loop -> the topic that it reads, in the order of an event's way."""
        sequencer = {"sequencer": ADMITTED} if self.replicas > 1 else {}
        return {"batcher": BEHAVIOUR, **sequencer, "fanout": EVENTS_BY_USER}


def _start(batcher: BatcherProcess) -> subprocess.Popen[bytes]:
    folder = batcher.folder
    (folder / "ready").unlink(missing_ok=True)
    argv = [batcher.bootstrap, batcher.group, str(folder), str(batcher.replicas)]
    child = subprocess.Popen([sys.executable, str(PROGRAM), *argv], start_new_session=True)
    deadline = time.monotonic() + WITHIN_S
    while not (folder / "ready").exists():
        assert child.poll() is None, "it ended during its start"
        assert time.monotonic() < deadline, f"it did not start within {WITHIN_S} s"
        time.sleep(0.02)
    return child


def _restarted(child: subprocess.Popen[bytes], batcher: BatcherProcess) -> subprocess.Popen[bytes]:
    """The process, or its successor if it has ended: a member that lacks CPU for a second loses its
    partitions, and the supervisor would restart it."""
    return child if child.poll() is None else _start(batcher)


def _run_and_kill(batcher: BatcherProcess, rng: random.Random) -> None:
    """Kills it while it writes, after at most ten messages."""
    own = {"group.id": "watch", "isolation.level": "read_uncommitted"}
    watch = Consumer({"bootstrap.servers": batcher.bootstrap, **own})
    topic = batcher.topics[0]
    wanted = _written(watch, topic) + rng.randint(1, 10)
    child = _start(batcher)
    deadline = time.monotonic() + WITHIN_S
    while _written(watch, topic) < wanted:
        child = _restarted(child, batcher)
        assert time.monotonic() < deadline, f"it wrote too little within {WITHIN_S} s"
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    watch.close()


def _written(watch: Consumer, topic: str) -> int:
    """Messages in the topic, committed or not."""
    ends = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    return sum(int(watch.get_watermark_offsets(end, timeout=10)[1]) for end in ends)


def _run_to_end(bus: KafkaBus, batcher: BatcherProcess) -> None:
    """Runs it until every loop has committed all of its input: nothing can be added after that."""
    child = _start(batcher)
    admin = AdminClient({"bootstrap.servers": batcher.bootstrap})
    deadline = time.monotonic() + WITHIN_S
    try:
        for role, topic in batcher.inputs().items():
            last = last_record_offsets(bus, topic)  # complete: the loop before is done
            while not _is_past(_committed(admin, f"{batcher.group}-{role}", topic), last):
                child = _restarted(child, batcher)
                assert time.monotonic() < deadline, f"{role} is not done within {WITHIN_S} s"
                time.sleep(0.1)
    finally:
        child.kill()
        child.wait(10)


def _is_past(committed: dict[int, int], last: dict[int, int]) -> bool:
    return all(committed.get(partition, -1) > offset for partition, offset in last.items())


def _committed(admin: AdminClient, name: str, topic: str) -> dict[int, int]:
    """Partition -> next offset, of the group `name` (its id ends with the topic's)."""
    listed = admin.list_consumer_groups().result(30).valid
    found: dict[int, int] = {}
    for group in (each.group_id for each in listed if each.group_id.startswith(name)):
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
        partitions = asked[group].result(30).topic_partitions
        found |= {each.partition: each.offset for each in partitions if each.topic == topic}
    return found


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
            "enable.partition.eof": True,
        }
    )
    reader.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    found = ended = 0
    while ended < PARTITIONS:
        errors = [message.error() for message in reader.consume(1_000, 1.0)]
        found += sum(error is None for error in errors)
        ended += sum(e is not None and e.code() == KafkaError._PARTITION_EOF for e in errors)
    reader.close()
    return found - len(_records(bus, topic))
