"""The events benchmark's counts of what it sent agree with what the path outputs."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from benchmarks.events.cluster import KEY
from benchmarks.events.source import Messages, Source
from benchmarks.features.events import Stream
from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.contract.clock import DAY_MS, WallClock
from streams.contract.events import KIND_CODE
from streams.contract.schema import from_ipc
from streams.contract.topics import (
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    ENTITY_TOPIC,
    EVENTS_BY_USER,
    topic_specs,
)
from streams.feedback.join import FeedbackJoin
from streams.ingest.fanout import FanOut
from streams.ingest.loop import IngestConfig
from streams.ingest.service import Batcher

N = 3_000


@pytest.fixture(scope="module")
def sent() -> Messages:
    return Source(Stream(users=200, items=300, span_ms=DAY_MS), KEY, seed=5).messages(N)


@pytest.fixture(scope="module")
def bus(sent: Messages) -> MemoryBus:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    messages = [
        Outgoing(BEHAVIOUR, value, key, partition=key[-1] % 2)
        for key, value in zip(sent.keys, sent.values, strict=True)
    ]
    bus.producer().send(messages)
    for loop in (Batcher(bus, WallClock(), IngestConfig()), FanOut(bus, IngestConfig())):
        while loop.run_once(0.01):
            pass
        loop.close()
    return bus


def tables(bus: MemoryBus, topic: str) -> Iterator[pa.Table]:
    for partition, (first, end) in bus.ends(topic).items():
        for record in bus.scan(topic, partition, first, end):
            yield from_ipc(record.value or b"")


def test_every_event_is_admitted_and_every_repeat_is_marked(bus: MemoryBus, sent: Messages) -> None:
    admitted = pa.concat_tables(tables(bus, EVENTS_BY_USER))
    assert admitted.num_rows == sent.written.messages == N + N // 100
    assert sum(admitted["duplicate"].to_pylist()) == sent.written.duplicates
    assert sum(last for _, last in bus.ends(BEHAVIOUR_DEAD).values()) == 0
    once = admitted.filter(pa.compute.invert(admitted["duplicate"]))
    assert once["kind"].to_pylist().count(KIND_CODE["shown"]) == sent.written.shown


@pytest.mark.parametrize("topic", ENTITY_TOPIC.values())
def test_each_topic_carries_as_many_events_as_expected(
    bus: MemoryBus, sent: Messages, topic: str
) -> None:
    carried = sum(table.num_rows for table in tables(bus, topic))
    assert carried == sent.written.expected(topic)


def test_every_token_is_valid(bus: MemoryBus) -> None:
    joined = [FeedbackJoin(KEY).join_batch(table) for table in tables(bus, EVENTS_BY_USER)]
    assert sum(len(one.impressions) for one in joined) > N // 40
    assert not any(one.rejected for one in joined)
