"""Laws of the gateway over HTTP, on a mill in memory with the real batcher and fold."""

from __future__ import annotations

import time
from typing import Any

import pytest

from models.release.bundle import Manifest
from serving.console.live import Mailbox
from streams.contract.impression import verify


def _ids(reply: dict[str, Any]) -> list[str]:
    return [item["video_id"] for item in reply["items"]]


def test_a_click_changes_the_users_next_feed_and_nothing_else_does(mill: Any) -> None:
    first = mill.feed()
    assert _ids(mill.feed()) == _ids(first)
    chosen = _ids(first)[0]
    assert mill.act("like", chosen).status_code == 202
    mill.until(lambda: mill.engaged() == [chosen])
    after = mill.feed()
    assert chosen not in _ids(after)
    assert {"video_id": chosen, "stage": "already_engaged", "reason": "already engaged: like"} in (
        after["removed"]
    )
    assert _ids(mill.feed(user_id="u2")) == _ids(mill.feed(user_id="u2"))


def test_without_writes_to_the_store_a_click_changes_nothing(make_mill: Any) -> None:
    mill = make_mill(streams=False)
    first = mill.feed()
    assert mill.act("like", _ids(first)[0]).status_code == 202
    time.sleep(0.3)
    assert _ids(mill.feed()) == _ids(first)


def test_an_answer_names_its_release_and_signs_every_impression(mill: Any) -> None:
    reply = mill.feed()
    assert (reply["release"], reply["models"]["ranker"]) == ("r0001", 1)
    assert sum(reply["weights"].values()) == pytest.approx(1.0, abs=1e-5)
    for item in reply["items"]:
        shown = verify(item["impression"], bytes(range(32)))
        assert (shown.video_id, shown.slot) == (item["video_id"], item["slot"])
        assert shown.propensity == item["propensity"] > 0
        assert shown.request_id == reply["request_id"]


def test_a_user_is_explained_by_tasks_times_weights_of_the_live_ranker(mill: Any) -> None:
    found = mill.client.get("/v1/users/u1").json()
    ranker = found["ranker"]
    assert ranker["version"] == mill.feed()["models"]["ranker"]
    told = {each["task"]: each["weight"] for each in ranker["tasks"]}
    assert told == pytest.approx(mill.feed()["weights"])
    assert all(0 <= each["p"] <= 1 for each in ranker["tasks"])
    mill.models.down = True
    assert mill.client.get("/v1/users/u1").json()["ranker"] is None


def test_an_unknown_user_gets_an_answer_marked_cold(mill: Any) -> None:
    reply = mill.feed(user_id="nobody")
    assert reply["cold_start"] is True
    assert len(reply["items"]) == 8


def test_an_unknown_video_gets_popular_queries_marked_cold(mill: Any) -> None:
    body = {"user_id": "u1", "video_id": "no-such", "k": 3}
    reply = mill.client.post("/v1/queries", json=body).json()
    assert reply["cold_start"] is True
    assert len(reply["items"]) == 3
    assert {f["reason"] for f in reply["fallbacks"]} == {"answered by popular_queries"}


def test_queries_stand_under_a_video_without_a_repeat(mill: Any) -> None:
    body = {"user_id": "u1", "video_id": "v8", "k": 3, "seed": 1}
    reply = mill.client.post("/v1/queries", json=body).json()
    texts = [item["query"] for item in reply["items"]]
    assert len(texts) == len(set(texts)) == 3
    assert reply["fallbacks"] == []


def test_a_dormant_user_gets_a_path_with_roles_and_a_goal(mill: Any) -> None:
    for video in ("v1", "v2", "v3"):
        mill.act("like", video)
    mill.until(lambda: len(mill.engaged()) == 3)
    reply = mill.client.post("/v1/reactivation", json={"user_id": "u1"}).json()
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
        ("/v1/queries", {"user_id": "u"}, "video_id"),
        ("/v1/reactivation", {"user_id": ""}, "user_id"),
    ],
)
def test_a_bad_request_is_refused_by_the_fields_name(
    mill: Any, path: str, body: dict[str, Any], field: str
) -> None:
    reply = mill.client.post(path, json=body)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["field"] == field


def test_a_bad_event_names_its_index_and_field_and_none_is_taken(mill: Any) -> None:
    good = {"event_id": "e", "user_id": "u1", "kind": "play", "video_id": "v1"}
    good["event_time_ms"] = time.time_ns() // 1_000_000  # type: ignore[assignment]
    for broken, field in (
        ({"kind": "teleport"}, "kind"),
        ({"event_time_ms": "now"}, "event_time_ms"),
        ({"user_id": "x" * 129}, "user_id"),
    ):
        reply = mill.client.post("/v1/events", json=[good, good | broken])
        assert reply.status_code == 422
        problem = reply.json()["detail"][0]
        assert (problem["index"], problem["field"]) == (1, field)
    assert sum(last for _, last in mill.bus.ends("behaviour").values()) == 0


def test_an_unread_body_is_left_to_admission_and_becomes_a_dead_letter(mill: Any) -> None:
    reply = mill.client.post("/v1/events?admit=async", content=b"{not json")
    assert reply.status_code == 202
    mill.until(lambda: mill.bus.ends("behaviour.dead")[0][1] == 1)
    mill.until(lambda: mill.gateway.live.totals["dead"] == 1)


def test_a_body_that_is_too_large_is_refused_whether_announced_or_not(mill: Any) -> None:
    large = b"x" * (5 << 20)
    assert mill.client.post("/v1/events", content=large).status_code == 413
    pieces = (large[at : at + 65_536] for at in range(0, len(large), 65_536))
    assert mill.client.post("/v1/events", content=pieces).status_code == 413


def test_a_video_taken_down_leaves_every_answer(mill: Any) -> None:
    gone = _ids(mill.feed())[0]
    assert mill.client.delete(f"/v1/catalogue/{gone}").status_code == 202
    mill.until(lambda: not mill.gateway.catalogue.available(gone))
    assert gone not in _ids(mill.feed(k=59))
    named = mill.feed(candidates=[gone, "v3", "v4"])
    assert {"video_id": gone, "stage": "unavailable", "reason": "taken down"} in named["removed"]


def test_a_video_put_into_the_catalogue_can_be_recommended(mill: Any) -> None:
    body = {"title": "Brand new", "genres": ["Drama"]}
    assert mill.client.put("/v1/catalogue/new-1", json=body).status_code == 202
    mill.until(lambda: mill.gateway.catalogue.available("new-1"))
    assert "new-1" in _ids(mill.feed(k=61))
    wrong = mill.client.put("/v1/catalogue/new-2", json=body | {"titel": "x"})
    assert wrong.json()["detail"][0]["field"] == "titel"


def test_given_candidates_are_ranked_and_no_others_are_added(mill: Any) -> None:
    reply = mill.feed(candidates=["v9", "v2", "v2", "ghost"])
    assert sorted(_ids(reply)) == ["v2", "v9"]
    assert {r["stage"] for r in reply["removed"]} == {"duplicate", "unavailable"}


def test_an_erased_user_is_a_stranger_again(mill: Any) -> None:
    mill.act("like", "v5")
    mill.until(lambda: mill.engaged() == ["v5"])
    assert mill.client.delete("/v1/users/u1").status_code == 202
    assert mill.client.get("/v1/users/u1").json()["cold_start"] is True
    assert sum(last for _, last in mill.bus.ends("erasures").values()) == 1
    assert [u["user_id"] for u in mill.client.get("/v1/users").json()["users"]] == []


def test_a_new_release_is_pinned_by_the_next_answer(mill: Any) -> None:
    mill.models.loaded = dict.fromkeys(mill.models.loaded, (1, 2))
    versions = dict.fromkeys(mill.models.loaded, 2)
    mill.book.found.append(Manifest("r0002", versions, created_ms=2))
    mill.until(lambda: mill.feed()["release"] == "r0002")
    assert mill.feed()["models"]["ranker"] == 2
    assert ("ranker", 2) in mill.models.calls


def test_keys_are_demanded_once_configured_and_scopes_hold(make_mill: Any) -> None:
    mill = make_mill(api_keys={"secret-e": ["events"], "secret-r": ["recommend"]})
    body = {"user_id": "u1"}
    assert mill.client.post("/v1/feed", json=body).status_code == 401
    wrong = {"X-API-Key": "secret-x"}
    assert mill.client.post("/v1/feed", json=body, headers=wrong).status_code == 401
    other = {"X-API-Key": "secret-e"}
    assert mill.client.post("/v1/feed", json=body, headers=other).status_code == 403
    right = {"Authorization": "Bearer secret-r"}
    assert mill.client.post("/v1/feed", json=body, headers=right).status_code == 200
    assert mill.client.get("/healthz").status_code == 200


def test_a_listener_beyond_loopback_demands_keys_even_when_none_is_configured(
    make_mill: Any,
) -> None:
    mill = make_mill(host="0.0.0.0")
    assert mill.client.post("/v1/feed", json={"user_id": "u1"}).status_code == 401


def test_metrics_and_openapi_speak_of_every_surface(mill: Any) -> None:
    mill.feed()
    text = mill.client.get("/metrics").text
    assert 'tidemill_requests_total{surface="feed"} 1.0' in text
    paths = mill.client.get("/openapi.json").json()["paths"]
    assert {"/v1/feed", "/v1/queries", "/v1/reactivation", "/v1/events"} <= set(paths)


def test_the_callers_trace_reaches_the_models_and_the_bus(mill: Any) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    mill.client.post("/v1/feed", json={"user_id": "u1"}, headers=headers)
    assert trace in mill.models.headers[-1]["traceparent"]
    sent = {"event_id": "traced", "user_id": "u1", "kind": "play", "video_id": "v1"}
    sent |= {"event_time_ms": time.time_ns() // 1_000_000}  # type: ignore[dict-item]
    assert mill.client.post("/v1/events", json=sent, headers=headers).status_code == 202
    ends = mill.bus.ends("behaviour")
    records = [
        r for p, (first, last) in ends.items() for r in mill.bus.scan("behaviour", p, first, last)
    ]
    assert trace.encode() in records[-1].header("traceparent")


def test_the_stream_tells_a_user_their_own_event_and_what_it_changed(mill: Any) -> None:
    mailbox = Mailbox("u1", lambda: None)
    mill.gateway.live.subscribe(mailbox)
    mill.until(lambda: "u1" in mill.gateway.watch._last)
    mill.act("like", "v4")
    mill.until(lambda: {"event", "feature"} <= {m.kind for m in mailbox.messages})
    feature = next(m for m in mailbox.messages if m.kind == "feature")
    assert feature.data["changed"]["like_count_all"] == [0, 1]
    assert feature.data["changed"]["engaged_video_id"] == [[], ["v4"]]
