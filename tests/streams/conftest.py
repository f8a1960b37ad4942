"""The buses that every law of the stream is tried on, and topics that never meet."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient

from streams.bus.contract import Bus, Consumer
from streams.bus.kafka.bus import KafkaBus
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import topic_specs

sys.path.insert(0, str(Path(__file__).parent))  # the suite's own modules

BUSES = ("memory", "embedded_broker", "kafka_broker")


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest) -> Bus:
    """The same law on the fake, on the embedded broker and on Apache Kafka."""
    if request.param == "memory":
        return MemoryBus()
    servers = request.getfixturevalue(request.param)
    if request.param == "embedded_broker":
        return KafkaBus(servers, session_timeout_ms=1_000)  # it delays a join by half of this
    return KafkaBus(servers)


@pytest.fixture
def kafka_bus(kafka_broker: str) -> KafkaBus:
    """Apache Kafka alone, for what only real transactions can promise."""
    return KafkaBus(kafka_broker)


@pytest.fixture
def wiped_kafka(kafka_broker: str) -> Iterator[str]:
    """The session's Apache Kafka without any stack's topics, as a new one would be."""
    _wipe(kafka_broker)
    yield kafka_broker
    _wipe(kafka_broker)


def _wipe(servers: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    names = {spec.name for spec in topic_specs(1)}
    present = sorted(names & admin.list_topics(timeout=10).topics.keys())
    if present:
        for future in admin.delete_topics(present).values():
            future.result(timeout=10)
    while names & admin.list_topics(timeout=10).topics.keys():
        time.sleep(0.1)


@pytest.fixture
def unique() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture
def joined() -> Iterator[Callable[..., Consumer]]:
    """Opens consumers that are closed when the test ends."""
    opened: list[Consumer] = []

    def join(bus: Bus, topic: str, group: str, **how: Any) -> Consumer:
        opened.append(bus.consumer([topic], group, **how))
        return opened[-1]

    yield join
    for consumer in opened:
        consumer.close()


@pytest.fixture
def take() -> Callable[..., list[Record]]:
    """Polls until `count` records came (or `polls` polls of 0.5 s brought no more)."""

    def _take(consumer: Consumer, count: int, polls: int = 30) -> list[Record]:
        records: list[Record] = []
        for _ in range(polls):
            records += consumer.poll(count - len(records), 0.5)
            if len(records) >= count:
                break
        return records

    return _take


@pytest.fixture(scope="session")
def event_table() -> Callable[[list[dict[str, object]]], pa.Table]:
    """Rows -> a batch of EVENT_SCHEMA; what a row leaves out gets a plain value."""

    def build(rows: list[dict[str, object]]) -> pa.Table:
        plain: dict[str, object] = {
            "event_time_ms": 1_700_000_000_000,
            "ingested_at_ms": 1_700_000_000_000,
            "surface": "feed",
            "origin": "live",
            "late": False,
            "duplicate": False,
            "source_partition": 0,
        }
        full = []
        for number, row in enumerate(rows):
            kind = KIND_CODE[str(row.get("kind", "play"))]
            own = {"event_id": f"e{number}", "user_id": "u0", "source_offset": number}
            full.append({**plain, **own, **row, "kind": kind})
        return pa.Table.from_pylist(full, schema=EVENT_SCHEMA)

    return build
