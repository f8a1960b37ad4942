"""Laws of POST /v1/events: the topic's verdict per event, and a limit of every size."""

from __future__ import annotations

import gzip
import json
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.http.api.event_batch import MAX_EVENTS, BadBatch, check_event, split_events
from streams.bus.contract import MAX_MESSAGE_BYTES, BusError, MessagesRejected, Outgoing
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.contract.topics import BEHAVIOUR, ERASURES
from streams.ingest.admission import AdmissionLimits, admit

NOW = 1_790_000_000_000
LIMIT = AdmissionLimits().max_event_bytes
GOOD = {
    "event_id": "e",
    "user_id": "u1",
    "kind": "play",
    "video_id": "v1",
    "event_time_ms": NOW,
}
# What HTTP and the topic might judge differently, as the bytes of one event.
DOUBTFUL = (
    b'{"kind":"play","event_id":"e","user_id":"u","video_id":"v","event_time_ms":1790000000000%s}'
)
CASES: dict[str, bytes] = {
    "a NaN in an unknown field": DOUBTFUL % b',"other":NaN',
    "an infinity in an unknown field": DOUBTFUL % b',"other":[-Infinity]',
    "a lone surrogate": DOUBTFUL % b',"author_id":"\\ud800"',
    "a lone surrogate in an unknown field": DOUBTFUL % b',"other":"\\ud800"',
    "bytes that are not UTF-8": DOUBTFUL % b',"author_id":"\xff"',
    "a repeated field": DOUBTFUL % b',"user_id":"second"',
    "deep nesting": DOUBTFUL % (b',"other":' + b"[" * 300 + b"]" * 300),
    "a huge integer": DOUBTFUL % (b',"other":' + b"9" * 400),
    "a huge dwell": DOUBTFUL % (b',"dwell_ms":' + b"9" * 30),
    "a float for an integer": DOUBTFUL % b',"dwell_ms":1.0',
    "a null": DOUBTFUL % b',"author_id":null',
    "an empty author": DOUBTFUL % b',"author_id":""',
    "a NUL": DOUBTFUL % b',"author_id":"a\\u0000b"',
    "too many bytes": DOUBTFUL % (b',"other":"' + b"x" * LIMIT + b'"'),
    "seconds": orjson.dumps(GOOD | {"event_time_ms": NOW // 1_000}),
    "microseconds": orjson.dumps(GOOD | {"event_time_ms": NOW * 1_000}),
    "the future": orjson.dumps(GOOD | {"event_time_ms": NOW + 86_400_000}),
    "ancient": orjson.dumps(GOOD | {"event_time_ms": NOW - 500 * 86_400_000}),
    "an unknown kind": orjson.dumps(GOOD | {"kind": "teleport"}),
    "no object": b"[[1]]",
    "no JSON": b"nonsense",
    "nothing": b"",
    "a good event": orjson.dumps(GOOD),
}


def _event(**more: Any) -> dict[str, Any]:
    return GOOD | {"event_time_ms": time.time_ns() // 1_000_000} | more


def _written(bus: Any, topic: str = BEHAVIOUR) -> list[Record]:
    ends = bus.ends(topic).items()
    return [record for p, (start, end) in ends for record in bus.scan(topic, p, start, end)]


def _topic_cause(raw: bytes) -> str:
    """The cause that admission refuses these bytes with; "" if it admits them."""
    admission = admit([Record(BEHAVIOUR, 0, 0, None, raw)], NOW, AdmissionLimits())
    return admission.refused[0].cause if admission.refused else ""


@pytest.mark.parametrize("raw", CASES.values(), ids=CASES)
def test_http_gives_the_verdict_of_the_topic(raw: bytes) -> None:
    assert check_event(raw, NOW, AdmissionLimits()).cause == _topic_cause(raw)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
        max_leaves=8,
    ),
    st.sampled_from(["author_id", "dwell_ms", "event_time_ms", "user_id", "kind", "other"]),
)
def test_http_gives_the_verdict_of_the_topic_for_any_value(value: Any, field: str) -> None:
    raw = json.dumps(GOOD | {field: value}).encode()
    checked = check_event(raw, NOW, AdmissionLimits())
    assert checked.cause == _topic_cause(raw)
    assert (checked.event is None) == bool(checked.problems) == bool(checked.cause)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers(-9, 9) | st.lists(st.text()))))
@example([{"]},{[": ['"\\', "}]"]}])
def test_a_list_is_split_into_the_bytes_of_its_elements(values: list[Any]) -> None:
    body = orjson.dumps(values)
    if not values:
        with pytest.raises(BadBatch):
            split_events(body)
        return
    assert [orjson.loads(part) for part in split_events(b" \n" + body)] == values


@pytest.mark.parametrize("body", [b"[", b"[{]", b'["]', b"[1] 2", b"[1,2", b"[]", b" [ ] "])
def test_a_list_that_is_not_closed_is_rejected_whole(body: bytes) -> None:
    with pytest.raises(BadBatch):
        split_events(body)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_split(body: bytes) -> None:
    with suppress(BadBatch):
        assert split_events(b"[" + body)


def test_a_longer_list_than_allowed_is_rejected() -> None:
    with pytest.raises(BadBatch, match="1000"):
        split_events(orjson.dumps([1] * (MAX_EVENTS + 1)))
    assert len(split_events(orjson.dumps([1] * MAX_EVENTS))) == MAX_EVENTS


def test_the_events_beside_an_invalid_one_are_accepted(make_harness: Any) -> None:
    harness = make_harness(streams=False)
    parts = [
        orjson.dumps(_event(event_id="a")),
        b'{"event_id": "\\ud800"}',
        orjson.dumps(_event(event_id="b", event_time_ms=NOW // 1_000)),
        orjson.dumps(_event(event_id="c"))[:-1] + b',"other":NaN}',
        orjson.dumps(_event(event_id="d", other="x" * LIMIT)),
    ]
    reply = harness.client.post("/v1/events", content=b"[" + b",".join(parts) + b"]")
    assert reply.status_code == 202
    assert reply.json()["accepted"] == 2
    refused = [(r["index"], r["field"], r["cause"]) for r in reply.json()["refused"]]
    assert refused == [
        (1, "body", "not_json"),
        (2, "event_time_ms", "out_of_bounds"),
        (4, "body", "too_large"),
    ]
    assert "seconds: multiply by 1000" in reply.json()["refused"][1]["msg"]
    assert str(LIMIT) in reply.json()["refused"][2]["msg"]
    assert sorted(r.value for r in _written(harness.bus)) == sorted([parts[0], parts[3]])


def test_if_none_is_accepted_the_reply_is_an_error(make_harness: Any) -> None:
    harness = make_harness(streams=False)
    broken = _event(kind="teleport")
    for body in (broken, [broken, broken]):
        reply = harness.client.post("/v1/events", json=body)
        assert (reply.status_code, reply.json()["accepted"]) == (422, 0)
        assert reply.json()["detail"][0]["field"] == "kind"
        assert reply.json()["refused"][-1]["cause"] == "unknown_kind"
    for body in (b"", b"[]", b"[{", b"nonsense", b"\xff"):
        reply = harness.client.post("/v1/events", content=body)
        assert reply.status_code == 422, body
        assert reply.json()["detail"][0]["field"] == "body"
    assert _written(harness.bus) == []


@pytest.mark.parametrize("size", [LIMIT + 1, MAX_MESSAGE_BYTES + 1, 2 << 20])
@pytest.mark.parametrize("query", ["", "?admit=async", "?all_or_nothing=true"])
def test_an_event_above_the_topics_limit_is_413_at_once_and_harms_no_other(
    make_harness: Any, size: int, query: str
) -> None:
    harness = make_harness(streams=False)
    for _ in range(4):
        large = _event(other="x" * size)
        reply = harness.client.post(f"/v1/events{query}", json=large)
        assert reply.status_code == 413
        assert f"an event may have {LIMIT}" in reply.json()["detail"][0]["msg"]
        assert "retry-after" not in reply.headers
    assert harness.client.post("/v1/events", json=_event()).status_code == 202
    assert harness.client.delete("/v1/users/u1").status_code == 202
    assert len(_written(harness.bus)) == len(_written(harness.bus, ERASURES)) == 1


def test_a_rejected_message_fails_its_own_request_only(make_harness: Any) -> None:
    """The broker may have a smaller limit than the client's."""
    harness = make_harness(streams=False, bus=MemoryBus(max_message_bytes=400))
    good, large = Outgoing(BEHAVIOUR, b"x"), Outgoing(BEHAVIOUR, b"x" * 1_000)
    outbox = harness.gateway.outbox
    outbox._waiting.put(None)
    outbox._thread.join()
    batch = [([good], Future()), ([good, large], Future()), ([large], Future())]
    for _ in range(3):  # more than the breaker allows outages
        outbox._send_batch(batch)
        assert batch[0][1].exception() is None
        assert batch[1][1].exception().reasons.keys() == {1}
        assert isinstance(batch[2][1].exception(), MessagesRejected)
        assert outbox._breaker.allows()
        batch = [(messages, Future()) for messages, _ in batch]
    assert len(_written(harness.bus)) == 6


def test_messages_the_broker_rejects_are_413_and_an_outage_is_503(
    make_harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness(streams=False)
    for error, status in ((MessagesRejected({0: "too large"}), 413), (BusError("down"), 503)):

        def fail(_: Any, error: BusError = error) -> None:
            raise error

        monkeypatch.setattr(harness.gateway.outbox, "send", fail)
        assert harness.client.post("/v1/events", json=_event()).status_code == status
        item = harness.client.put("/v1/catalogue/v1", json={"title": "T"})
        assert item.status_code == status
        assert harness.client.post("/v1/erasures", json={"user_id": "u"}).status_code == status


def test_unchecked_lists_are_split_and_counted(make_harness: Any) -> None:
    harness = make_harness(streams=False)
    parts = [b'{"broken": true}', b'{"event_id": "\\ud800"}', b"1"]
    url = "/v1/events?admit=async"
    reply = harness.client.post(url, content=b"[" + b", ".join(parts) + b"]")
    assert (reply.status_code, reply.json()) == (202, {"accepted": 3, "refused": []})
    assert sorted(r.value for r in _written(harness.bus)) == sorted(parts)
    large = orjson.dumps({"other": "x" * LIMIT})
    reply = harness.client.post(url, content=b"[" + large + b",1]")
    assert reply.json()["accepted"] == 1
    assert [each["index"] for each in reply.json()["refused"]] == [0]


def test_gzip_is_decoded_within_the_same_limit(make_harness: Any) -> None:
    harness = make_harness(streams=False)
    own = {"Content-Type": "application/json"}

    def post(body: bytes, encoding: str = "gzip", path: str = "/v1/events") -> Any:
        return harness.client.post(path, content=body, headers=own | {"Content-Encoding": encoding})

    event = orjson.dumps(_event())
    assert post(gzip.compress(event)).status_code == 202
    halves = gzip.compress(event[:9]) + gzip.compress(event[9:])  # two members
    assert post(halves).status_code == 202
    assert [record.value for record in _written(harness.bus)] == [event, event]
    feed = gzip.compress(orjson.dumps({"user_id": "u1", "k": 3}))
    assert post(feed, path="/v1/feed").status_code == 200
    bomb = gzip.compress(b" " * (64 << 20))
    assert len(bomb) < 100_000
    assert post(bomb).status_code == 413
    for broken in (b"no gzip", gzip.compress(event)[:-4], gzip.compress(event) + b"x"):
        assert post(broken).status_code == 400
    assert post(event, "br").status_code == 415
    assert post(event, "identity").status_code == 202
