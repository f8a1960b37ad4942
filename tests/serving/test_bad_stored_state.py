"""Bad messages and bad stored state stop neither a gateway nor its start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from features.memory_store import MemoryFeatureStore
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import EMPTY, PopularityCache
from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock
from streams.contract.topics import (
    BEHAVIOUR_DEAD,
    CATALOGUE,
    ERASURES,
    EVENTS_BY_USER,
    MODELS_PUBLISHED,
    topic_specs,
)

AT = 1_700_000_000_000
VALID = {"at_ms": AT, "ids": ["v1"], "score": [1.0], "shown": [3], "clicked": {"v1": ["q"]}}
BAD_STATE: dict[str, bytes] = {
    "empty": b"",
    "torn": orjson.dumps(VALID)[:-9],
    "a list": b"[1]",
    "null": b"null",
    "a time beyond int64": json.dumps(VALID | {"at_ms": 10**19}).encode(),
    "a count beyond int64": json.dumps(VALID | {"shown": [10**19]}).encode(),
    "a score that is none": json.dumps(VALID | {"score": [float("nan")]}).encode(),
    "too few scores": json.dumps(VALID | {"score": []}).encode(),
    "queries that are none": json.dumps(VALID | {"clicked": {"v1": 7}}).encode(),
}


def _popularity(path: Path) -> PopularityCache:
    return PopularityCache(MemoryFeatureStore(), LiveCatalogue(Catalogue()), WallClock(), path)


def test_a_stored_popularity_is_read(tmp_path: Path) -> None:
    path = tmp_path / "popularity.json"
    path.write_bytes(orjson.dumps(VALID))
    assert _popularity(path).current.scores_of(["v1"]).tolist() == [1.0]


@pytest.mark.parametrize("content", BAD_STATE.values(), ids=list(BAD_STATE))
def test_a_bad_popularity_file_is_named_and_starts_empty(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "popularity.json"
    path.write_bytes(content)
    assert _popularity(path).current is EMPTY
    assert str(path) in caplog.text


def test_a_gateway_reads_on_behind_bad_messages(make_harness: Callable[..., Any]) -> None:
    item = {"video_id": "new", "title": "New", "created_ms": AT}
    added = {"kind": "item_added", "event_id": "c", "event_time_ms": AT, "item": item}
    bad = [
        None, b"", b"{", b"\xff", b"[" * 50_000, b'{"video_id": "x2", "title": "T"}',
        json.dumps(added | {"item": item | {"created_ms": 10**19}}).encode(),
        json.dumps(added | {"event_time_ms": AT * 1_000}).encode(),
        json.dumps({"user_id": "u1", "at_ms": 10**19}).encode(),
    ]  # fmt: skip
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    topics = (CATALOGUE, EVENTS_BY_USER, BEHAVIOUR_DEAD, MODELS_PUBLISHED, ERASURES)
    nulls: Any = {"tidemill-dead": None, "traceparent": None, "tidemill-until": None}
    for topic in topics:
        messages = [Outgoing(topic, value, partition=0, headers=nulls) for value in bad]
        bus.producer().send(messages)
    bus.producer().send([Outgoing(CATALOGUE, json.dumps(added).encode())])
    harness = make_harness(bus=bus)
    harness.wait_until(lambda: harness.client.get("/v1/catalogue/new").status_code == 200)
    harness.send_event("like", "v1")
    harness.wait_until(lambda: harness.engaged() == ["v1"])
    harness.wait_until(lambda: harness.gateway.live.totals["events"] == 1)
    assert harness.feed()["items"]
