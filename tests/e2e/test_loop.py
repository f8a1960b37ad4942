"""The whole loop on real servers: event → feature → changed answer → changed model.

Tests that kill a server are in `test_loop_faults`, which runs afterwards.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from playwright.sync_api import Browser, expect

from deploy import wiring
from streams.bus.contract import Outgoing
from streams.contract.topics import BEHAVIOUR, BEHAVIOUR_DEAD, REQUESTS, RESPONSES
from streams.event_log import EventLog
from streams.feedback.store import read_feedback
from streams.ingest.dead_letters import parse_dead_letter, scan_dead_letters

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SEED = 7
Loop = Any  # tests/e2e/conftest.py
Eventually = Callable[[Callable[[], object], float, str], None]


def _item_ids(answer: dict[str, Any]) -> list[str]:
    return [item["video_id"] for item in answer["items"]]


def test_online_features_equal_a_count_over_what_was_replayed(loop: Loop) -> None:
    frame = loop.past.frame
    for user in loop.users(20):
        own = frame.filter(pl.col("user_id") == user)
        row = loop.features(user)["features"]
        for kind in ("play", "long_view", "like", "order"):
            assert row[f"{kind}_count_all"] == own.filter(pl.col("kind") == kind).height


def test_plain_feast_reads_the_same_row_as_the_gateway(loop: Loop) -> None:
    store = wiring.feature_store(loop.settings)
    user = loop.users(1)[0]
    now = wiring.clock(loop.settings.clock).now_ms()
    client = store.feast_client()
    plain = client.get_online_features(
        features=client.get_feature_service("user"),
        entity_rows=[{"user_id": user, "now_ms": now}],
    ).to_dict()
    ours = store.read("user", [user], now)
    for name in ("play_count_all", "like_count_all", "order_count_all"):
        assert plain[name] == [int(ours.columns[name][0])]


def test_a_feed_comes_from_the_served_models_and_explains_itself(loop: Loop) -> None:
    answer = loop.ask("feed", user_id=loop.users(1)[0], k=10, seed=SEED)
    assert answer["fallbacks"] == []
    assert answer["models"] == {"ranker": 1, "queries": 1, "reactivation": 1}
    assert abs(sum(answer["weights"].values()) - 1) < 1e-4
    for item in answer["items"]:
        assert set(item["p"]) == set(answer["weights"])
        assert all(0 <= p <= 1 for p in item["p"].values())
        assert 0 < item["propensity"] <= 1
        assert item["impression"]


def test_an_item_without_events_is_not_ranked_as_perfect(
    loop: Loop, eventually: Eventually
) -> None:
    new = f"new-{uuid.uuid4().hex}"
    item = {"title": "An item without events", "genres": ["Drama"]}
    assert loop.http.put(f"/v1/catalogue/{new}", json=item).status_code in (200, 202)
    played = loop.past.frame.filter(pl.col("kind") == "play")["video_id"].value_counts(sort=True)
    known = played["video_id"][:5].to_list()
    asked = {"user_id": loop.users(12)[11], "k": 6, "candidates": [new, *known]}
    eventually(lambda: new in _item_ids(loop.ask("feed", **asked)), 15, "the new item ranked")
    p = {item["video_id"]: item["p"]["play"] for item in loop.ask("feed", **asked)["items"]}
    assert p[new] < max(p[item_id] for item_id in known)


def test_users_get_feeds_of_their_own(loop: Loop) -> None:
    users = loop.users(8)
    slates = {tuple(_item_ids(loop.ask("feed", user_id=u, k=10, seed=SEED))) for u in users}
    assert len(slates) > len(users) // 2, "two users with few actions may share one; most do not"


def test_a_click_changes_that_users_features_and_next_feed(
    loop: Loop, eventually: Eventually
) -> None:
    me, other = loop.users(2)
    before = loop.ask("feed", user_id=me, k=10, seed=SEED)
    others = loop.features(other)["features"]
    assert _item_ids(loop.ask("feed", user_id=me, k=10, seed=SEED)) == _item_ids(before)
    liked = before["items"][0]
    likes = loop.features(me)["features"]["like_count_all"]
    fields = {"video_id": liked["video_id"], "impression": liked["impression"], "surface": "feed"}
    loop.send(loop.event(me, "play", dwell_ms=9_000, **fields), loop.event(me, "like", **fields))
    eventually(
        lambda: loop.features(me)["features"]["like_count_all"] == likes + 1, 15, "the like folded"
    )
    after = loop.ask("feed", user_id=me, k=10, seed=SEED)
    assert _item_ids(after) != _item_ids(before)
    assert liked["video_id"] not in _item_ids(after)
    assert loop.features(other)["features"] == others


def test_drawn_weights_are_joined_with_their_outcomes(loop: Loop, eventually: Eventually) -> None:
    """From the seed's draw through token, broker and join to the policy's training rows."""
    user = loop.users(7)[6]
    asked = (loop.ask("feed", user_id=user, k=5, seed=seed) for seed in range(200))
    slate = next(answer for answer in asked if answer["weights_drawn"])
    mean = loop.features(user)["weights"]
    assert slate["weights"] != pytest.approx(mean, abs=1e-3)
    for item in slate["items"]:
        ratios = {task: p / slate["rates"][task] for task, p in item["p"].items()}
        score = sum(weight * ratios[task] for task, weight in slate["weights"].items())
        assert item["score"] == pytest.approx(score, rel=1e-4)
    first = slate["items"][0]
    fields = {"video_id": first["video_id"], "impression": first["impression"], "surface": "feed"}
    loop.send(loop.event(user, "shown", **fields))

    def joined() -> pl.DataFrame:
        rows = read_feedback(loop.settings.feedback_dir)
        return rows.filter(pl.col("request_id") == slate["slate_id"])

    eventually(lambda: joined().height == 1, 20, "the feedback joined")
    row = joined().row(0, named=True)
    assert row["weights"] == pytest.approx(list(slate["weights"].values()), abs=1e-5)
    assert row["log_density"] is not None


def test_a_request_over_kafka_gets_the_same_reply(loop: Loop, eventually: Eventually) -> None:
    """Repeated until nothing changes in between: events reach the items' rows with a delay."""
    user = loop.users(3)[2]

    def over_http() -> list[str]:
        return _item_ids(loop.ask("feed", user_id=user, k=5, seed=SEED))

    answers: list[list[str]] = []

    def unchanged() -> bool:
        answers[:] = over_http(), _item_ids(_asked_over_kafka(loop, user)), over_http()
        return answers[0] == answers[2]

    eventually(unchanged, 60, "the same reply before and after")
    assert answers[1] == answers[0]


def _asked_over_kafka(loop: Loop, user: str) -> dict[str, Any]:
    bus = wiring.bus(loop.settings)
    asked = {
        "surface": "feed",
        "request_id": uuid.uuid4().hex,
        "user_id": user,
        "k": 5,
        "seed": SEED,
    }
    answers = bus.consumer([RESPONSES], f"e2e-{uuid.uuid4().hex}")
    bus.producer().send([Outgoing(REQUESTS, json.dumps(asked).encode(), user.encode())])
    deadline = time.monotonic() + 20
    found: dict[str, Any] = {}
    while not found and time.monotonic() < deadline:
        replies = [json.loads(r.value or b"{}") for r in answers.poll(100, 0.5)]
        found = next((r for r in replies if r.get("request_id") == asked["request_id"]), {})
    answers.close()
    return found


def test_only_legal_queries_are_shown_under_an_item(loop: Loop) -> None:
    words = loop.past.frame.filter(pl.col("query").is_not_null())["query"].unique()
    legal = set(words.to_list())
    for item_id in loop.past.frame["video_id"].drop_nulls().unique().sort()[:5]:
        answer = loop.ask("queries", user_id=loop.users(1)[0], video_id=item_id, k=3)
        assert answer["fallbacks"] == []
        assert {item["query"] for item in answer["items"]} <= legal
        assert len(answer["items"]) == 3


def test_a_dormant_users_trajectory_gives_each_item_a_role(loop: Loop) -> None:
    answer = loop.ask("reactivation", user_id=loop.users(4)[3], k=6)
    assert answer["fallbacks"] == []
    roles = {"trigger", "bridge", "comparison", "converter", "noise"}
    assert {item["role"] for item in answer["items"]} <= roles
    assert all(0 <= item["p_convert"] <= 1 for item in answer["items"])


def test_an_unknown_user_and_an_unknown_item_get_a_cold_start(loop: Loop) -> None:
    stranger = f"stranger-{uuid.uuid4().hex}"
    feed = loop.ask("feed", user_id=stranger, k=10)
    assert feed["cold_start"]
    assert len(feed["items"]) == 10
    assert loop.ask("queries", user_id=stranger, video_id="no-such-item", k=3)["cold_start"]


def test_a_broken_event_is_a_dead_letter_and_the_good_one_beside_it_arrives(
    loop: Loop, eventually: Eventually
) -> None:
    user = f"new-{uuid.uuid4().hex}"
    bus = wiring.bus(loop.settings)
    dead_letters = bus.consumer([BEHAVIOUR_DEAD], f"e2e-{uuid.uuid4().hex}")
    marker = uuid.uuid4().hex.encode()
    good = loop.event(user, "like", video_id=loop.past.items[0].video_id)
    bus.producer().send([
        Outgoing(BEHAVIOUR, b"\xff\xfe not json " + marker, b"k"),
        Outgoing(BEHAVIOUR, None, b"k"),
        Outgoing(BEHAVIOUR, json.dumps(good).encode(), b"k"),
    ])  # fmt: skip
    eventually(
        lambda: loop.http.get(f"/v1/users/{user}").json()["features"]["like_count_all"] == 1,
        15, "the good event folded",
    )  # fmt: skip
    dead: list[Any] = []
    eventually(
        lambda: dead.extend(dead_letters.poll(1_000, 0.5)) or any(marker in (r.value or b"") for r in dead),
        20, "the dead letter",
    )  # fmt: skip
    dead_letters.close()
    ours = [parse_dead_letter(record) for record in dead if marker in (record.value or b"")]
    assert [each.cause.cause for each in ours] == ["undecodable"]


def test_a_late_event_counts_in_the_hour_it_happened(loop: Loop, eventually: Eventually) -> None:
    user = f"late-{uuid.uuid4().hex}"
    now = wiring.clock(loop.settings.clock).now_ms()
    item_id = loop.past.items[0].video_id
    loop.send(loop.event(user, "play", video_id=item_id, event_time_ms=now - 5 * 3_600_000))
    eventually(
        lambda: loop.http.get(f"/v1/users/{user}").json()["features"]["play_count_1d"] == 1,
        15, "the late play",
    )  # fmt: skip
    assert loop.features(user)["features"]["play_count_1h"] == 0
    log = EventLog(loop.settings.log_dir)
    eventually(
        lambda: log.read().filter(pl.col("user_id") == user)["late"].to_list() == [True],
        15, "the log's mark",
    )  # fmt: skip


def test_one_trace_leads_from_an_event_to_its_fold(loop: Loop, eventually: Eventually) -> None:
    trace_id = uuid.uuid4().hex
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    user = loop.users(5)[4]
    crowd = [loop.event(f"{user}-x{n}", "like", video_id="1") for n in range(999)]
    loop.send(*crowd[:500])
    loop.send(loop.event(user, "like", video_id="1"), headers=headers)
    loop.send(*crowd[500:])
    wanted = {"tidemill-gateway", "tidemill-features", "tidemill-log-writer"}
    eventually(lambda: wanted <= loop.spans.services(trace_id), 30, f"{wanted} in the trace")
    assert "triton-inference-server" not in loop.spans.services(trace_id), "no model folds"


def test_one_trace_leads_from_a_request_into_triton(loop: Loop, eventually: Eventually) -> None:
    """Only replies of models: a fallback does not call Triton. An exporter may lose a batch of
    spans, so one complete trace is enough.
    """
    body = {"user_id": loop.users(1)[0], "k": 3}
    wanted = {"tidemill-gateway", "triton-inference-server"}
    traces: list[str] = []

    def one_is_complete() -> bool:
        trace_id = uuid.uuid4().hex
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        answer = loop.http.post("/v1/feed", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        traces.extend([trace_id] if answer.json()["fallbacks"] == [] else [])
        time.sleep(1.0)
        return any(wanted <= loop.spans.services(trace) for trace in traces)

    eventually(one_is_complete, 90, f"{wanted} in the trace of an answer without fallbacks")


def test_the_page_shows_what_the_loop_does(loop: Loop, chromium: Browser, tmp_path: Path) -> None:
    user = loop.users(7)[6]
    page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{loop.stack.page}/?user={user}")
    page.wait_for_selector("#slate[data-state=ready] .card")
    page.wait_for_selector("body[data-live=yes]")
    shown = page.locator("#slate .card").first
    item_id = shown.get_attribute("data-item") or ""
    expect(shown.locator(".queries button").first).to_be_visible()
    shown.locator("button[data-act=like]").click()
    page.wait_for_function(
        "id => !document.querySelector(`#slate [data-item='${id}']`)", arg=item_id
    )
    expect(page.locator("#freshness")).to_contain_text("ms")
    expect(page.locator("tr.changed[data-feature=like_count_all]")).to_have_count(1)
    page.click("#show-trajectory")
    expect(page.locator("#trajectory .goal")).to_contain_text("toward:")
    page.click("#send-late")
    expect(page.locator("#admission .badge.late")).to_have_text("late")
    page.click("#send-broken")
    expect(page.locator("#admission .badge.dead").first).to_have_text("dead letter")
    page.wait_for_timeout(500)
    folder = Path(os.environ.get("TIDEMILL_SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / "loop-1280.png", full_page=True)
    page.close()
    assert errors == []


def test_an_erased_user_is_gone_from_features_and_log_for_good(
    loop: Loop, eventually: Eventually
) -> None:
    user = f"erase-{uuid.uuid4().hex}"
    log = EventLog(loop.settings.log_dir)

    def kept() -> int:
        return log.read().filter(pl.col("user_id") == user).height

    old = loop.event(user, "like", video_id="1")
    loop.send(old)
    eventually(lambda: kept() == 1, 15, "the event in the log")
    eventually(
        lambda: loop.features(user)["features"]["like_count_all"] == 1, 15, "the event folded"
    )
    assert loop.http.delete(f"/v1/users/{user}").status_code == 202
    eventually(lambda: kept() == 0, 20, "the log without the user")
    bus = wiring.bus(loop.settings)

    def refused() -> int:
        return sum(dead.cause.cause == "erased" for dead in scan_dead_letters(bus))

    before = refused()
    loop.send(old | {"event_id": uuid.uuid4().hex})
    eventually(lambda: refused() > before, 20, "the erased user's event refused")
    assert loop.features(user)["features"]["like_count_all"] == 0
    assert kept() == 0
