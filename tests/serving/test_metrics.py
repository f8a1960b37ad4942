"""What the gateway exports: its names by convention, rejections by cause, no ids and no secrets."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import time
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from serving.kafka_requests import answer
from serving.monitoring.metrics import RENAMED, Metrics
from serving.state.replies import RecentReplies
from streams.json_logs import JsonFormatter

IDS = {"user_id", "item_id", "video_id", "query", "request_id", "event_id", "slate_id"}
UNITS = ("_seconds", "_bytes", "_ratio", "_records")
# Gauges of a state or a count, which have no unit.
COUNTS = {
    "tidemill_component_up",
    "tidemill_model_up",
    "tidemill_release_live",
    "tidemill_feature_skew",
    "tidemill_feature_skew_checked",
}


def samples(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_names_and_units_follow_the_conventions() -> None:
    own = [f for registry in (REGISTRY, Metrics(["feed"]).registry) for f in registry.collect()]
    mine = [f for f in own if f.name.startswith(("tidemill_", "http_"))]
    assert len(mine) > 25
    old = {name.removesuffix("_total") for name in RENAMED}
    for family in mine:
        if family.type in ("gauge", "histogram") and family.name not in old | COUNTS:
            assert family.name.endswith(UNITS), family.name
        assert family.documentation.endswith("."), family.name
        assert not {label for s in family.samples for label in s.labels} & IDS


def test_renamed_metrics_are_exported_under_both_names(harness: Any) -> None:
    harness.feed()
    text = harness.client.get("/metrics").text
    for old, new in RENAMED.items():
        assert f"# TYPE {old} " in text, "the old name stays for one release"
        assert f"# TYPE {new} " in text
        assert f"use {new}" in text


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: apt-get install prometheus")
def test_promtool_reads_the_metrics(harness: Any) -> None:
    harness.feed()
    text = harness.client.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if line]
    old = tuple(f"{name} " for name in RENAMED)
    assert [each for each in complaints if not each.startswith(old)] == []


def test_rejections_are_counted_by_cause_and_routes_name_no_id(make_harness: Any) -> None:
    harness = make_harness(api_keys={"key": ["events", "recommend", "admin"]})
    client, key = harness.client, {"X-API-Key": "key"}
    client.post("/v1/feed", json={"user_id": "u-private"})
    client.post("/v1/feed", json={"user_id": "u-private", "sede": 1}, headers=key)
    client.post("/v1/feed", content=b"x" * (5 << 20), headers=key)
    client.get("/v1/users/u-private", headers=key)
    client.get("/v1/no-such/u-private", headers=key)
    client.get("/v1/users/u-private")
    text = client.get("/metrics", headers=key).text
    rejected = samples(text, "tidemill_requests_rejected_total")
    assert rejected == {
        (("cause", "invalid"), ("route", "/v1/feed")): 1,
        (("cause", "no_key"), ("route", "/v1/feed")): 1,
        (("cause", "no_key"), ("route", "/v1/users/{user_id:id}")): 1,
        (("cause", "not_found"), ("route", "other")): 1,
        (("cause", "too_large"), ("route", "other")): 1,
    }
    assert "u-private" not in text
    counts = samples(text, "http_server_request_duration_seconds_count")
    assert (
        counts[
            ("http_request_method", "POST"),
            ("http_response_status_code", "422"),
            ("http_route", "/v1/feed"),
        ]
        == 1
    )


def test_rejected_events_are_counted_by_cause(harness: Any) -> None:
    now_ms = time.time_ns() // 1_000_000
    good = {"event_id": "e", "user_id": "u1", "kind": "play", "video_id": "v1"}
    sent = [good | {"event_time_ms": now_ms}, good | {"event_time_ms": now_ms + 10**9}]
    assert harness.client.post("/v1/events", json=[*sent, {}]).status_code == 202
    found = samples(harness.client.get("/metrics").text, "tidemill_events_rejected_total")
    assert found[(("cause", "future"),)] == 1
    assert sum(found.values()) == 2


def test_calls_of_models_and_of_the_store_are_measured_and_a_fallback_is_shown(
    harness: Any,
) -> None:
    harness.feed()
    text = harness.client.get("/metrics").text
    calls = "tidemill_model_call_seconds_count"
    assert samples(text, calls)[("model", "ranker"), ("outcome", "ok")] >= 1
    reads = samples(text, "tidemill_store_read_seconds_count")
    assert reads[("entity", "user"), ("outcome", "ok")] >= 1
    assert samples(text, "tidemill_release_live") == {(): 1}
    assert samples(text, "tidemill_model_up")[(("model", "ranker"),)] == 1
    assert samples(text, "tidemill_request_deadline_seconds")[(("surface", "feed"),)] == 1.25
    before = samples(text, "tidemill_degraded_replies_total")[(("surface", "feed"),)]
    harness.models.down = True
    assert harness.feed(user_id="u2")["fallbacks"]
    text = harness.client.get("/metrics").text
    assert samples(text, "tidemill_degraded_replies_total")[(("surface", "feed"),)] == before + 1
    assert samples(text, calls)[("model", "ranker"), ("outcome", "failed")] >= 1
    fallbacks = samples(text, "tidemill_fallbacks_total")
    assert any(dict(labels)["surface"] == "feed" for labels in fallbacks)


def test_slates_are_counted_once() -> None:
    metrics = Metrics()
    metrics.count_slates({"kept": 3, "dropped": 0})
    metrics.count_slates({"kept": 5, "dropped": 1})
    text = metrics.text().decode()
    found = samples(text, "tidemill_slates_logged_total")
    assert found == {(("outcome", "kept"),): 5, (("outcome", "dropped"),): 1}
    assert samples(text, "tidemill_served_slates") == found


def test_requests_over_kafka_are_counted_as_those_over_http(harness: Any) -> None:
    surfaces, metrics, replies = harness.gateway.surfaces, Metrics(), RecentReplies()
    ask = {"surface": "feed", "user_id": "u1", "request_id": "r1"}
    for body in (ask, ask | {"k": 3}, {"surface": "feed"}, {"surface": "x", "user_id": "u"}, None):
        value = b"{" if body is None else json.dumps(body).encode()
        answer(value, surfaces, b"k" * 32, replies, metrics)
    text = metrics.text().decode()
    assert samples(text, "tidemill_requests_total") == {(("surface", "feed"),): 1}
    causes = {dict(labels)["cause"] for labels in samples(text, "tidemill_requests_rejected_total")}
    assert causes == {"conflict", "invalid", "not_found", "unreadable"}


def test_logs_of_requests_name_no_user_and_no_key(make_harness: Any) -> None:
    stream, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("gateway", ["secret-key-1"]))
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        harness = make_harness(api_keys={"secret-key-1": ["events", "recommend", "admin"]})
        client, key = harness.client, {"X-API-Key": "secret-key-1"}
        client.post("/v1/feed", json={"user_id": "u-private"}, headers=key)
        client.post("/v1/feed", json={"user_id": "u-private", "k": "x"}, headers=key)
        harness.models.down = True
        client.post("/v1/feed", json={"user_id": "u-private"}, headers=key)
        client.get("/v1/users/u-private", headers=key)
        logging.getLogger("tidemill").warning("the gateway used %s", "secret-key-1")
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    # The client of the test logs the URL that it calls; the gateway's side must not.
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    own = [line for line in lines if not line["logger"].startswith(("httpx", "httpcore"))]
    assert own
    assert "u-private" not in json.dumps(own)
    assert "secret-key-1" not in stream.getvalue()
