"""Laws of the gateway over HTTP, with the real batcher and folds on an in-memory bus."""

from __future__ import annotations

import time
from typing import Any

import pytest

from models.release.store import Manifest
from serving.console.hub import Subscriber
from streams.contract.impression import verify
from streams.contract.topics import BEHAVIOUR


def _ids(reply: dict[str, Any]) -> list[str]:
    return [item["video_id"] for item in reply["items"]]


def test_only_the_users_own_click_changes_their_next_feed(harness: Any) -> None:
    first = harness.feed()
    assert _ids(harness.feed()) == _ids(first)
    chosen = _ids(first)[0]
    assert harness.send_event("like", chosen).status_code == 202
    harness.wait_until(lambda: harness.engaged() == [chosen])
    after = harness.feed()
    assert chosen not in _ids(after)
    assert {
        "item_id": chosen,
        "video_id": chosen,
        "stage": "already_engaged",
        "reason": "already engaged: like",
    } in (after["removed"])
    assert _ids(harness.feed(user_id="u2")) == _ids(harness.feed(user_id="u2"))


def test_without_writes_to_the_store_a_click_changes_nothing(make_harness: Any) -> None:
    harness = make_harness(streams=False)
    first = harness.feed()
    assert harness.send_event("like", _ids(first)[0]).status_code == 202
    assert sum(end for _, end in harness.bus.ends(BEHAVIOUR).values()) == 1
    assert _ids(harness.feed()) == _ids(first)


def test_a_reply_names_its_release_and_signs_every_impression(harness: Any) -> None:
    reply = harness.feed()
    assert (reply["release"], reply["models"]["ranker"]) == ("r0001", 1)
    assert sum(reply["weights"].values()) == pytest.approx(1.0, abs=1e-5)
    for item in reply["items"]:
        shown = verify(item["impression"], bytes(range(32)))
        assert (shown.video_id, shown.slot) == (item["video_id"], item["slot"])
        assert shown.propensity == item["propensity"] > 0
        assert shown.request_id == reply["slate_id"] != reply["request_id"]


def test_a_users_page_shows_tasks_and_weights_of_the_live_ranker(harness: Any) -> None:
    found = harness.client.get("/v1/users/u1").json()
    ranker = found["ranker"]
    assert ranker["version"] == harness.feed()["models"]["ranker"]
    weights = {each["task"]: each["weight"] for each in ranker["tasks"]}
    assert weights == pytest.approx(harness.feed()["weights"])
    assert all(0 <= each["p"] <= 1 for each in ranker["tasks"])
    harness.models.down = True
    assert harness.client.get("/v1/users/u1").json()["ranker"] is None


def test_an_unknown_user_gets_a_reply_marked_cold(harness: Any) -> None:
    reply = harness.feed(user_id="unknown")
    assert reply["cold_start"] is True
    assert len(reply["items"]) == 8


def test_an_unknown_item_gets_popular_queries_marked_cold(harness: Any) -> None:
    body = {"user_id": "u1", "video_id": "no-such", "k": 3}
    reply = harness.client.post("/v1/queries", json=body).json()
    assert reply["cold_start"] is True
    assert len(reply["items"]) == 3
    assert {f["reason"] for f in reply["fallbacks"]} == {"answered by popular_queries"}


def test_queries_under_an_item_do_not_repeat(harness: Any) -> None:
    body = {"user_id": "u1", "video_id": "v8", "k": 3, "seed": 1}
    reply = harness.client.post("/v1/queries", json=body).json()
    texts = [item["query"] for item in reply["items"]]
    assert len(texts) == len(set(texts)) == 3
    assert reply["fallbacks"] == []


def test_a_dormant_user_gets_a_trajectory_with_roles_and_a_goal(harness: Any) -> None:
    for item in ("v1", "v2", "v3"):
        harness.send_event("like", item)
    harness.wait_until(lambda: len(harness.engaged()) == 3)
    reply = harness.client.post("/v1/reactivation", json={"user_id": "u1"}).json()
    assert reply["items"][0]["role"] == "trigger"
    assert reply["goal"]["video_id"] == _ids(reply)[-1]
    assert all(0 <= item["p_convert"] <= 1 for item in reply["items"])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/feed", {"k": 3}, "user_id"),
        ("/v1/feed", {"user_id": "u", "k": 0}, "k"),
        ("/v1/feed", {"user_id": "u", "k": "many"}, "k"),
        ("/v1/feed", {"user_id": "u", "sede": 3}, "sede"),
        ("/v1/feed", {"user_id": "u", "candidates": ["v1", 3]}, "candidates.1"),
        ("/v1/queries", {"user_id": "u"}, "item_id"),
        ("/v1/reactivation", {"user_id": ""}, "user_id"),
    ],
)
def test_an_invalid_request_is_rejected_naming_the_field(
    harness: Any, path: str, body: dict[str, Any], field: str
) -> None:
    reply = harness.client.post(path, json=body)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["field"] == field


def test_with_all_or_nothing_one_invalid_event_rejects_the_batch(harness: Any) -> None:
    good = {"event_id": "e", "user_id": "u1", "kind": "play", "video_id": "v1"}
    good["event_time_ms"] = time.time_ns() // 1_000_000  # type: ignore[assignment]
    for broken, field in (
        ({"kind": "teleport"}, "kind"),
        ({"event_time_ms": "now"}, "event_time_ms"),
        ({"user_id": "x" * 129}, "user_id"),
    ):
        url = "/v1/events?all_or_nothing=true"
        reply = harness.client.post(url, json=[good, good | broken])
        assert reply.status_code == 422
        problem = reply.json()["detail"][0]
        assert (problem["index"], problem["field"]) == (1, field)
    assert sum(last for _, last in harness.bus.ends("behaviour").values()) == 0


def test_an_invalid_body_sent_with_admit_async_becomes_a_dead_letter(harness: Any) -> None:
    reply = harness.client.post("/v1/events?admit=async", content=b"{not json")
    assert reply.status_code == 202
    harness.wait_until(lambda: harness.bus.ends("behaviour.dead")[0][1] == 1)
    harness.wait_until(lambda: harness.gateway.live.totals["dead"] == 1)


def test_a_body_over_the_limit_is_rejected_with_and_without_content_length(harness: Any) -> None:
    large = b"x" * (5 << 20)
    assert harness.client.post("/v1/events", content=large).status_code == 413
    pieces = (large[at : at + 65_536] for at in range(0, len(large), 65_536))
    assert harness.client.post("/v1/events", content=pieces).status_code == 413


def test_an_item_taken_down_is_in_no_reply(harness: Any) -> None:
    gone = _ids(harness.feed())[0]
    assert harness.client.delete(f"/v1/catalogue/{gone}").status_code == 202
    harness.wait_until(lambda: not harness.gateway.catalogue.available(gone))
    assert gone not in _ids(harness.feed(k=59))
    named = harness.feed(candidates=[gone, "v3", "v4"])
    assert {
        "item_id": gone,
        "video_id": gone,
        "stage": "unavailable",
        "reason": "taken down",
    } in named["removed"]


def test_an_item_added_to_the_catalogue_can_be_recommended(harness: Any) -> None:
    body = {"title": "Brand new", "genres": ["Drama"]}
    assert harness.client.put("/v1/catalogue/new-1", json=body).status_code == 202
    harness.wait_until(lambda: harness.gateway.catalogue.available("new-1"))
    assert "new-1" in _ids(harness.feed(k=61))
    wrong = harness.client.put("/v1/catalogue/new-2", json=body | {"titel": "x"})
    assert wrong.json()["detail"][0]["field"] == "titel"


def test_provided_candidates_are_ranked_and_no_others_are_added(harness: Any) -> None:
    reply = harness.feed(candidates=["v9", "v2", "v2", "ghost"])
    assert sorted(_ids(reply)) == ["v2", "v9"]
    assert {r["stage"] for r in reply["removed"]} == {"duplicate", "unavailable"}


def test_an_erased_user_is_unknown_again(harness: Any) -> None:
    harness.send_event("like", "v5")
    harness.wait_until(lambda: harness.engaged() == ["v5"])
    assert harness.client.delete("/v1/users/u1").status_code == 202
    assert harness.client.get("/v1/users/u1").json()["cold_start"] is True
    assert sum(last for _, last in harness.bus.ends("erasures").values()) == 1
    assert [u["user_id"] for u in harness.client.get("/v1/users").json()["users"]] == []


def test_the_next_reply_after_a_promotion_uses_the_new_release(harness: Any) -> None:
    harness.models.loaded = dict.fromkeys(harness.models.loaded, (1, 2))
    versions = dict.fromkeys(harness.models.loaded, 2)
    harness.releases.found.append(Manifest("r0002", versions, created_ms=2))
    harness.wait_until(lambda: harness.feed()["release"] == "r0002")
    assert harness.feed()["models"]["ranker"] == 2
    assert ("ranker", 2) in harness.models.calls


def test_configured_keys_are_required_and_limited_to_their_scopes(make_harness: Any) -> None:
    harness = make_harness(api_keys={"secret-e": ["events"], "secret-r": ["recommend"]})
    body = {"user_id": "u1"}
    assert harness.client.post("/v1/feed", json=body).status_code == 401
    wrong = {"X-API-Key": "secret-x"}
    assert harness.client.post("/v1/feed", json=body, headers=wrong).status_code == 401
    other = {"X-API-Key": "secret-e"}
    assert harness.client.post("/v1/feed", json=body, headers=other).status_code == 403
    right = {"Authorization": "Bearer secret-r"}
    assert harness.client.post("/v1/feed", json=body, headers=right).status_code == 200
    assert harness.client.get("/healthz").status_code == 200


def test_a_host_other_than_loopback_requires_keys_even_if_none_is_configured(
    make_harness: Any,
) -> None:
    harness = make_harness(host="0.0.0.0")
    assert harness.client.post("/v1/feed", json={"user_id": "u1"}).status_code == 401


def test_metrics_and_openapi_include_the_surfaces(harness: Any) -> None:
    harness.feed()
    text = harness.client.get("/metrics").text
    assert 'tidemill_requests_total{surface="feed"} 1.0' in text
    assert 'tidemill_component_up{component="broker"} 1.0' in text
    assert 'tidemill_part_up{part="broker"} 1.0' in text, "the old name stays for one release"
    paths = harness.client.get("/openapi.json").json()["paths"]
    assert {"/v1/feed", "/v1/queries", "/v1/reactivation", "/v1/events"} <= set(paths)


def test_the_callers_trace_reaches_the_models_and_the_bus(harness: Any) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    harness.client.post("/v1/feed", json={"user_id": "u1"}, headers=headers)
    assert trace in harness.models.headers[-1]["traceparent"]
    sent = {"event_id": "traced", "user_id": "u1", "kind": "play", "video_id": "v1"}
    sent |= {"event_time_ms": time.time_ns() // 1_000_000}  # type: ignore[dict-item]
    assert harness.client.post("/v1/events", json=sent, headers=headers).status_code == 202
    ends = harness.bus.ends("behaviour")
    records = [
        r
        for p, (first, last) in ends.items()
        for r in harness.bus.scan("behaviour", p, first, last)
    ]
    assert trace.encode() in records[-1].header("traceparent")


def test_the_stream_sends_a_users_event_and_the_features_it_changed(harness: Any) -> None:
    subscriber = Subscriber("u1", lambda: None)
    harness.gateway.hub.subscribe(subscriber)
    harness.wait_until(lambda: "u1" in harness.gateway.watch._last)
    harness.send_event("like", "v4")
    harness.wait_until(lambda: {"event", "feature"} <= {m.kind for m in subscriber.messages})
    feature = next(m for m in subscriber.messages if m.kind == "feature")
    assert feature.data["changed"]["like_count_all"] == [0, 1]
    assert feature.data["changed"]["engaged_video_id"] == [[], ["v4"]]


def test_a_failing_update_is_named_and_requests_are_answered(make_harness: Any) -> None:
    report = {"phase": "retrying", "next_due_ms": 9, "problem": "the update failed 2 times"}
    harness = make_harness(updates=lambda: {"ranker": report})
    health = harness.client.get("/healthz")
    assert health.status_code == 200
    assert health.json()["status"] == "degraded"
    assert health.json()["parts"]["updates"]["reason"] == "ranker: the update failed 2 times"
    assert harness.client.get("/v1/models").json()["updates"] == {"ranker": report}
    harness.feed()
