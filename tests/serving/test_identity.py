"""Laws of identity: impressions have the server's ids, and a repetition gets the same reply."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.kafka_requests import answer
from serving.pipeline import runner
from serving.state.replies import RecentReplies, RequestConflict
from serving.surfaces.feed import FeedRequest
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.contract.bounds import MAX_ID
from streams.contract.impression import is_digest, verify
from streams.contract.schema import from_ipc
from streams.contract.topics import EVENTS_BY_USER
from streams.feedback.store import FeedbackStore, read_feedback

KEY = bytes(range(32))
SECRET = "secret-user-4711"


def _request(**fields: Any) -> FeedRequest:
    return FeedRequest.model_validate({"user_id": "u", "request_id": "r"} | fields)


def test_impressions_of_two_users_with_one_request_id_do_not_mix(
    make_harness: Any, tmp_path: Path
) -> None:
    harness = make_harness()
    first = harness.feed("u1", request_id="same", seed=1)
    second = harness.feed("u2", request_id="same", seed=2)
    assert first["request_id"] == second["request_id"] == "same"
    assert first["slate_id"] != second["slate_id"]
    liked = second["items"][0]
    for kind in ("shown", "like"):
        harness.send_event(kind, liked["video_id"], "u2", impression=liked["impression"])
    harness.send_event("shown", first["items"][0]["video_id"], "u1",
                       impression=first["items"][0]["impression"])  # fmt: skip
    harness.wait_until(lambda: harness.engaged("u2") == [liked["video_id"]])
    feedback = FeedbackStore(tmp_path, key=KEY, windows_ms={"like": 60_000})
    consumer = harness.bus.consumer([EVENTS_BY_USER], "feedback")
    joined = 0
    while joined < 3:
        for record in consumer.poll(500, 5.0):
            stamp = (harness.bus.topic_id(EVENTS_BY_USER), record.partition, record.offset)
            table = from_ipc(record.value or b"")
            feedback.join(Delivery(EVENTS_BY_USER, Stamp(*stamp), table))
            joined += table.num_rows
    rows = {row["user_id"]: row for row in read_feedback(tmp_path).iter_rows(named=True)}
    assert rows["u2"]["video_id"] == liked["video_id"]
    assert (rows["u1"]["like"], rows["u2"]["like"]) == (False, True)


def test_a_repeated_request_gets_the_same_reply_and_another_body_gets_409(harness: Any) -> None:
    first = harness.feed(request_id="once", seed=None)
    harness.send_event("like", first["items"][0]["video_id"])
    harness.wait_until(lambda: harness.engaged() == [first["items"][0]["video_id"]])
    assert harness.feed(request_id="once", seed=None) == first
    body = {"user_id": "u1", "k": 3, "request_id": "once"}
    reply = harness.client.post("/v1/feed", json=body)
    assert (reply.status_code, reply.json()["detail"][0]["field"]) == (409, "request_id")
    under = {"user_id": "u1", "video_id": "v1", "request_id": "once"}
    assert harness.client.post("/v1/queries", json=under).status_code == 409
    assert harness.feed("u2", request_id="once", seed=None) != first
    assert harness.feed(seed=None) != harness.feed(seed=None), "no request id, no repetition"


def test_http_and_kafka_share_replies(harness: Any) -> None:
    reply = harness.feed(request_id="once")
    body = {"surface": "feed", "user_id": "u1", "k": 8, "seed": 5, "request_id": "once"}
    gateway = harness.gateway

    def over_kafka(**more: Any) -> Any:
        value = orjson.dumps(body | more)
        return orjson.loads(answer(value, gateway.surfaces, KEY, gateway.replies))

    assert over_kafka() == reply
    conflict = over_kafka(k=9)
    assert conflict["request_id"] == "once"
    assert conflict["error"]["detail"][0]["field"] == "request_id"


def test_an_erased_users_reply_is_forgotten(harness: Any) -> None:
    first = harness.feed(request_id="once")
    other = harness.feed("u2", request_id="once")
    assert harness.client.delete("/v1/users/u1").status_code == 202
    assert harness.feed(request_id="once")["slate_id"] != first["slate_id"]
    assert harness.feed("u2", request_id="once") == other


def test_replies_are_kept_for_their_time_and_within_their_bytes() -> None:
    now = [0.0]
    replies = RecentReplies(keep_s=600.0, max_bytes=100, monotonic=lambda: now[0])
    assert replies.reply(_request(), lambda: b"a" * 40) == b"a" * 40
    now[0] = 599.0
    assert replies.reply(_request(), lambda: b"b") == b"a" * 40
    with pytest.raises(RequestConflict):
        replies.reply(_request(k=3), lambda: b"b")
    now[0] = 600.0
    assert replies.reply(_request(), lambda: b"b") == b"b"
    for number in range(50):
        replies.reply(_request(request_id=f"r{number}"), lambda: b"c" * 40)
    assert len(replies) == 2
    replies.forget("u")
    assert (len(replies), replies._bytes) == (0, 0)


def test_repetitions_wait_for_the_first_and_a_failure_is_not_kept() -> None:
    replies, made, go = RecentReplies(), [], threading.Event()

    def make() -> bytes:
        made.append(1)
        go.wait(10.0)
        return b"reply"

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(replies.reply, _request(), make) for _ in range(8)]
        go.set()
        assert {future.result(10.0) for future in futures} == {b"reply"}
    assert len(made) == 1

    def fail() -> bytes:
        raise RuntimeError("down")

    with pytest.raises(RuntimeError):
        replies.reply(_request(request_id="failed"), fail)
    assert replies.reply(_request(request_id="failed"), lambda: b"later") == b"later"


def test_tokens_for_long_ids_are_accepted_as_an_events_impression(harness: Any) -> None:
    user_id = "使" * MAX_ID
    item_id = "動" * MAX_ID
    put = harness.client.put(f"/v1/catalogue/{item_id}", json={"title": "T"})
    assert put.status_code == 202
    harness.wait_until(lambda: harness.gateway.catalogue.available(item_id))
    (item,) = harness.feed(user_id, candidates=[item_id])["items"]
    assert is_digest(verify(item["impression"], KEY).user_id)
    sent = harness.send_event("like", item_id, user_id, impression=item["impression"])
    assert (sent.status_code, sent.json()) == (202, {"accepted": 1, "refused": []})


def test_no_candidates_mean_no_items_and_the_reply_says_why(harness: Any) -> None:
    reply = harness.feed(candidates=[])
    assert (reply["items"], reply["candidates"]) == ([], 0)
    assert "lists no candidates" in reply["reason"]
    unknown = harness.feed(candidates=["ghost"])
    assert (unknown["items"], unknown["reason"]) == (
        [],
        "every candidate was removed: see `removed`",
    )
    assert "reason" not in harness.feed()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Every span of the process; the provider of before is back afterwards."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(runner, "_TRACER", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def test_spans_logs_and_metrics_carry_no_user_id(
    harness: Any, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _touch_every_route(harness)
    found = [span.to_json() for span in spans.get_finished_spans()]
    assert any("surface feed" in span for span in found)
    logged = [record.getMessage() for record in caplog.records if record.name != "httpx"]
    assert SECRET not in "\n".join([*found, *logged, harness.client.get("/metrics").text])


def _touch_every_route(harness: Any) -> None:
    client, gateway = harness.client, harness.gateway
    harness.feed(SECRET, request_id="r")
    for path, body in (
        ("/v1/feed", {"user_id": SECRET, "request_id": "r", "k": 2}),  # 409
        ("/v1/feed", {"user_id": SECRET, "k": 0}),
        ("/v1/queries", {"user_id": SECRET, "video_id": "v1"}),
        ("/v1/reactivation", {"user_id": SECRET}),
        ("/v1/users/lookup", {"user_id": SECRET}),
        ("/v1/events", {"user_id": SECRET, "kind": SECRET}),
    ):
        client.post(path, json=body)
    harness.send_event("like", "v1", SECRET)
    harness.wait_until(lambda: harness.engaged(SECRET) == ["v1"])
    for value in (b'{"surface":"feed","user_id":"%s"}', b'{"surface":"x","user_id":"%s"}'):
        answer(value.replace(b"%s", SECRET.encode()), gateway.surfaces, KEY, gateway.replies)
    harness.models.down = True
    harness.feed(SECRET)
    client.post("/v1/erasures", json={"user_id": SECRET})
