"""Laws of the Kafka edge: the same answers, and errors that name the field."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from serving import kafka_requests as requests_edge
from serving.kafka_requests import answer
from serving.pipeline.surfaces import Parts, Surfaces
from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.contract.topics import REQUESTS, RESPONSES, topic_specs

KEY = bytes(32)


@pytest.fixture
def surfaces(parts: Parts) -> Iterator[Surfaces]:
    made = Surfaces(parts)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{not json", "body"),
        (b"\xff\xfe", "body"),
        (b"", "body"),
        (None, "body"),
        (b"[]", "surface"),
        (b'{"user_id": "u"}', "surface"),
        (b'{"surface": "sports", "user_id": "u"}', "surface"),
        (b'{"surface": "feed"}', "user_id"),
        (b'{"surface": "feed", "user_id": "u", "k": 0}', "k"),
        (b'{"surface": "feed", "user_id": "u", "colour": 1}', "colour"),
        (b'{"surface": "queries", "user_id": "u"}', "video_id"),
        (b"x" * (2 << 20), "body"),
    ],
)
def test_a_bad_request_is_answered_by_the_fields_name(
    surfaces: Surfaces, body: bytes | None, field: str
) -> None:
    reply = answer(body, surfaces, KEY)
    assert reply["error"]["detail"][0]["field"] == field


def test_the_edge_answers_each_request_once_with_its_key_and_id(surfaces: Surfaces) -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    bodies: list[Any] = [
        {"surface": "feed", "user_id": "u1", "request_id": "one", "k": 4, "seed": 1},
        {"surface": "feed", "request_id": "two"},
        {"surface": "queries", "user_id": "u1", "video_id": "v3", "request_id": "three"},
        {"surface": "reactivation", "user_id": "u1", "request_id": "four"},
    ]
    bus.producer().send(
        [Outgoing(REQUESTS, orjson.dumps(b), b"key", headers={"h": b"1"}) for b in bodies]
    )
    stop = threading.Event()
    worker = threading.Thread(
        target=requests_edge.run, args=(bus, surfaces, stop), kwargs={"impression_key": KEY}
    )
    worker.start()
    reader, records = bus.consumer([RESPONSES], "test"), []
    while len(records) < 4:
        found = reader.poll(10, 5.0)
        assert found, "no answer came"
        records += found
    stop.set()
    worker.join(5.0)
    replies = {reply["request_id"]: reply for reply in (orjson.loads(r.value) for r in records)}
    assert set(replies) == {"one", "two", "three", "four"}
    assert "user_id" in replies["two"]["error"]["detail"][0]["field"]
    assert len(replies["one"]["items"]) == 4
    assert {r.key for r in records} == {b"key"}
    assert all(r.header("h") == b"1" for r in records)
    assert reader.poll(10, 0.2) == []
