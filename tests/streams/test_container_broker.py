"""The bus on a broker in a container, where the machine has a Docker engine."""

from __future__ import annotations

import uuid

import pytest

from streams.bus.contract import Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import TopicSpec

pytestmark = pytest.mark.docker


def test_what_is_written_in_a_transaction_is_read_in_order(container_broker: str) -> None:
    bus = KafkaBus(container_broker)
    topic = f"container-{uuid.uuid4().hex}"
    bus.ensure_topics([TopicSpec(topic, 1)])
    sent = [b"%d" % n for n in range(100)]
    bus.producer(f"writer-{uuid.uuid4().hex}").send([Outgoing(topic, value) for value in sent])
    consumer = bus.consumer([topic], f"group-{uuid.uuid4().hex}")
    read: list[bytes | None] = []
    for _ in range(50):
        read += [record.value for record in consumer.poll(1_000, 1.0)]
        if len(read) == len(sent):
            break
    assert read == sent
