"""Laws of requests over Kafka: the same replies as over HTTP, and errors that name the field."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import kafka_requests
from serving.kafka_requests import answer
from serving.state.replies import RecentReplies
from serving.surfaces import StageDependencies, Surfaces
from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.contract.topics import REQUESTS, RESPONSES, topic_specs

KEY = bytes(32)


@pytest.fixture
def surfaces(stage_deps: StageDependencies) -> Iterator[Surfaces]:
    surfaces = Surfaces(stage_deps)
    yield surfaces
    surfaces.close()


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
        (b'{"surface": "queries", "user_id": "u"}', "item_id"),
        (b"x" * (2 << 20), "body"),
    ],
)
def test_an_invalid_request_is_answered_naming_the_field(
    surfaces: Surfaces, body: bytes | None, field: str
) -> None:
    reply = orjson.loads(answer(body, surfaces, KEY, RecentReplies()))
    assert reply["error"]["detail"][0]["field"] == field


def test_each_request_is_answered_once_with_its_key_and_id(surfaces: Surfaces) -> None:
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
        target=kafka_requests.run, args=(bus, surfaces, stop), kwargs={"impression_key": KEY}
    )
    worker.start()
    reader, records = bus.consumer([RESPONSES], "test"), []
    while len(records) < 4:
        found = reader.poll(10, 5.0)
        assert found, "no response within 5 s"
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


@pytest.fixture
def ask(surfaces: Surfaces) -> Iterator[Any]:
    """`ask(records)` -> the responses, after the consumer has gone through all of them."""
    bus, stop = MemoryBus(), threading.Event()
    bus.ensure_topics(topic_specs(2))
    worker = threading.Thread(
        target=kafka_requests.run, args=(bus, surfaces, stop), kwargs={"impression_key": KEY}
    )
    worker.start()
    reader = bus.consumer([RESPONSES], "test")

    def ask(*requests: Outgoing) -> list[Record]:
        bus.producer().send(requests)
        found: list[Record] = []
        while len(found) < len(requests):
            records = reader.poll(100, 10.0)
            assert records, "no response within 10 s"
            found += records
        return found

    yield ask
    stop.set()
    worker.join(10.0)


GOOD = orjson.dumps({"surface": "feed", "user_id": "u1", "request_id": "good", "k": 2})


@given(
    value=st.none() | st.binary(max_size=60) | st.just(GOOD),
    key=st.none() | st.binary(max_size=20),
    headers=st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["tenant", "traceparent", "tracestate", "baggage"]),
        st.none() | st.binary(max_size=40),
    ),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nulls_and_any_bytes_get_one_response_and_harm_no_later_request(
    ask: Any, value: bytes | None, key: bytes | None, headers: Any
) -> None:
    first = Outgoing(REQUESTS, value, key, headers=headers)
    responses = [orjson.loads(r.value) for r in ask(first, Outgoing(REQUESTS, GOOD, key))]
    assert sum(len(reply.get("items", ())) == 2 for reply in responses) >= 1
    assert all(("error" in reply) != ("items" in reply) for reply in responses)


def test_null_headers_and_keys_come_back_as_they_were(ask: Any) -> None:
    (response,) = ask(Outgoing(REQUESTS, GOOD, None, headers={"tenant": None, "b": b"1"}))  # type: ignore[dict-item]
    assert (response.key, dict(response.headers)) == (None, {"tenant": None, "b": b"1"})


def test_a_response_too_large_with_the_requests_headers_is_an_error_without_them(ask: Any) -> None:
    large = b"x" * 999_000
    for request in (
        Outgoing(REQUESTS, GOOD, b"k", headers={"large": large}),
        Outgoing(REQUESTS, GOOD, large),
    ):
        (response,) = ask(request)
        reply = orjson.loads(response.value)
        assert (reply["request_id"], reply["error"]["detail"][0]["field"]) == ("good", "headers")
    assert "items" in orjson.loads(ask(Outgoing(REQUESTS, GOOD))[0].value)


@pytest.mark.parametrize("request_id", [7, "", "x" * 129, "a\0", {"a": 1}, None])
def test_an_invalid_request_id_is_not_echoed(surfaces: Surfaces, request_id: Any) -> None:
    body = orjson.dumps({"surface": "feed", "user_id": "u", "request_id": request_id})
    reply = orjson.loads(answer(body, surfaces, KEY, RecentReplies()))
    assert reply["request_id"] is None
    assert reply["error"]["detail"][0]["field"] == "request_id"


def test_other_keys_do_not_wait_and_a_keys_own_requests_stay_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others, started = threading.Event(), list[bytes]()

    def answered(value: bytes | None, *_: Any) -> bytes:
        started.append(value or b"")
        if value == b"a1":
            assert others.wait(10.0), "b's request waits for a's"
        elif value == b"b1":
            others.set()
        return value or b""

    monkeypatch.setattr(kafka_requests, "answer", answered)
    bus, stop = MemoryBus(), threading.Event()
    bus.ensure_topics(topic_specs(1))
    requests = [(b"a", b"a1"), (b"a", b"a2"), (b"b", b"b1"), (None, b"n1"), (b"a", b"a3")]
    bus.producer().send([Outgoing(REQUESTS, value, key) for key, value in requests])
    worker = threading.Thread(
        target=kafka_requests.run, args=(bus, None, stop), kwargs={"impression_key": KEY}
    )
    worker.start()
    reader, found = bus.consumer([RESPONSES], "test"), list[bytes]()
    while len(found) < len(requests):
        records = reader.poll(10, 10.0)
        assert records, "no response within 10 s"
        found += [record.value or b"" for record in records]
    stop.set()
    worker.join(10.0)
    assert [value for value in started if value.startswith(b"a")] == [b"a1", b"a2", b"a3"]
    assert found == [value for _, value in requests]
