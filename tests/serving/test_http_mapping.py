"""POST /v1/events?mapping=NAME: other systems' webhooks."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from streams.contract.topics import BEHAVIOUR

NOW = datetime.fromtimestamp(time.time(), UTC).isoformat()


def track(event: str, **more: Any) -> dict[str, Any]:
    properties = {"product_id": "p1", "price": 2.5}
    return {
        "type": "track", "messageId": "m1", "userId": "ann", "event": event, "timestamp": NOW,
        "properties": properties, **more,
    }  # fmt: skip


def written(bus: Any) -> int:
    return sum(end - start for start, end in bus.ends(BEHAVIOUR).values())


def test_a_segment_webhook_becomes_events(harness: Any) -> None:
    body = [track("Product Viewed"), track("Signed Up"), track("Product Added", userId=None)]
    reply = harness.client.post("/v1/events?mapping=segment", json=body)
    assert reply.status_code == 202, reply.text
    answer = reply.json()
    assert (answer["accepted"], answer["left_out"]) == (1, 1)
    (refused,) = answer["refused"]  # without a user
    assert (refused["index"], refused["field"]) == (1, "play.user_id") or "user_id" in refused[
        "field"
    ]
    assert written(harness.bus) == 1


def test_one_call_may_hold_no_event(harness: Any) -> None:
    reply = harness.client.post("/v1/events?mapping=segment", json=track("Signed Up"))
    assert (reply.status_code, reply.json()) == (202, {"accepted": 0, "refused": [], "left_out": 1})


def test_a_wrong_mapping_or_body_is_a_422_that_says_why(harness: Any) -> None:
    for query, body, says in (
        ("segmend", b"{}", "did you mean segment"),
        ("../segment", b"{}", "no mapping"),
        ("rees46-items", b"{}", "for files"),
        ("segment", b"nonsense", "no JSON"),
        ("segment", b"[1]", "no JSON object"),
    ):
        reply = harness.client.post(f"/v1/events?mapping={query}", content=body)
        assert reply.status_code == 422, (query, reply.text)
        assert says in reply.text, (query, reply.text)


def test_too_many_events_in_few_documents_are_refused(harness: Any) -> None:
    products = [{"product_id": f"p{n}"} for n in range(1_001)]
    body = track("Order Completed", properties={"products": products})
    reply = harness.client.post("/v1/events?mapping=segment", json=body)
    assert reply.status_code == 422
    assert "1001 events" in reply.text
    assert written(harness.bus) == 0
