"""Parts go down and come back: there is always an answer, in time, and health tells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.services import process
from deploy.services.process import PartUnavailable
from deploy.services.valkey import Valkey
from features.memory_store import MemoryFeatureStore
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName, FeatureFrame, StoreDown
from models.client import ModelUnavailable
from serving.clients.breaker import Breaker
from serving.pipeline.runner import Deadlines
from streams.bus.contract import BusError, Outgoing
from streams.bus.memory import MemoryBus

DEADLINES = Deadlines(200, 300, 300, 300)
LONGEST_ANSWER_S = 1.1 + 0.5  # the sum of the deadlines, and this machine's leisure


def _ids(reply: dict[str, Any]) -> list[str]:
    return [item["video_id"] for item in reply["items"]]


def _stages(reply: dict[str, Any]) -> set[str]:
    return {fallback["stage"] for fallback in reply["fallbacks"]}


def _part(mill: Any, name: str) -> str:
    return str(mill.client.get("/healthz").json()["parts"][name]["status"])


@pytest.fixture
def valkey_part(tmp_path: Path) -> Any:
    """A Valkey that a test may kill, on a port that stays."""
    part = Valkey(tmp_path, name="mortal")
    children = []

    class Mortal:
        address = part.address

        def start(self) -> None:
            children.append(process.start(part))

        def kill(self) -> None:
            children[-1].kill()

    try:
        mortal = Mortal()
        mortal.start()
    except PartUnavailable as reason:
        pytest.skip(str(reason))
    yield mortal
    for child in children:
        child.stop()


def test_with_the_store_killed_answers_come_from_the_last_good_rows_and_recover(
    make_mill: Any, valkey_part: Any
) -> None:
    store = FeastFeatureStore(valkey_part.address, 0, "faults", timeout_s=0.3)
    mill = make_mill(store=store, deadlines=DEADLINES, snapshot_every_s=0.5)
    mill.act("like", "v5")
    mill.until(lambda: mill.engaged() == ["v5"])
    good = mill.feed()
    assert (good["stale"], good["fallbacks"]) == (False, [])
    valkey_part.kill()
    mill.until(lambda: _part(mill, "store") == "down")
    reply = mill.feed()
    assert {"user_features", "video_features"} <= _stages(reply)
    assert (reply["stale"], len(reply["items"])) == (True, 8)
    assert "v5" not in _ids(reply), "the last good row still says what the user has seen"
    assert mill.client.get("/healthz").status_code == 200
    stranger = mill.feed(user_id="stranger")
    assert (stranger["cold_start"], len(stranger["items"])) == (True, 8)
    valkey_part.start()
    mill.until(lambda: _part(mill, "store") == "up" and not mill.feed()["fallbacks"], 15.0)
    assert mill.feed()["stale"] is False


class Frozen:
    """A store that hangs, as one behind a broken network does."""

    def __init__(self) -> None:
        self.inner = MemoryFeatureStore()
        self.hang_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        time.sleep(self.hang_s)
        return self.inner.read(entity, ids, now_ms)


def test_a_store_that_hangs_costs_no_more_than_the_deadlines(make_mill: Any) -> None:
    store = Frozen()
    mill = make_mill(store=store, deadlines=DEADLINES)
    mill.feed()
    store.hang_s = 3.0
    started = time.monotonic()
    reply = mill.feed()
    took = time.monotonic() - started
    store.hang_s = 0.0
    assert took < LONGEST_ANSWER_S
    assert len(reply["items"]) == 8
    assert {"user_features", "video_features"} <= _stages(reply)


def test_without_models_every_surface_answers_from_its_fallback(mill: Any) -> None:
    for video in ("v1", "v2", "v3"):
        mill.act("like", video)
    mill.until(lambda: len(mill.engaged()) == 3)
    mill.models.down = True
    feed = mill.feed()
    assert "ranker" in _stages(feed)
    assert (feed["weights"], len(feed["items"])) == ({}, 8)
    body = {"user_id": "u1", "video_id": "v8", "k": 3}
    queries = mill.client.post("/v1/queries", json=body).json()
    assert "generated" in _stages(queries)
    assert len(queries["items"]) == 3
    back = mill.client.post("/v1/reactivation", json={"user_id": "u1"}).json()
    assert "trajectory" in _stages(back)
    assert not {"v1", "v2", "v3"} & set(_ids(back))
    mill.until(lambda: _part(mill, "models") == "down")
    mill.models.down = False
    mill.until(lambda: not mill.feed()["fallbacks"])
    mill.until(lambda: _part(mill, "models") == "up")


class Cut(MemoryBus):
    """A broker that can be cut off."""

    cut = False

    def producer(self, transactional_id: str | None = None, **more: Any) -> Any:
        inner = super().producer(transactional_id, **more)
        bus = self

        class Producer:
            def send(self, messages: Sequence[Outgoing], **more: Any) -> None:
                if bus.cut:
                    raise BusError("the broker is gone")
                inner.send(messages, **more)

            settle, close = inner.settle, inner.close

        return Producer()

    def healthy(self, timeout_s: float = 1.0) -> bool:
        del timeout_s
        return not self.cut


def test_without_the_broker_feeds_go_on_and_events_are_refused_with_the_reason(
    make_mill: Any,
) -> None:
    bus = Cut()
    mill = make_mill(bus=bus)
    bus.cut = True
    refused = mill.act("like", "v1")
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    assert len(mill.feed()["items"]) == 8
    mill.until(lambda: _part(mill, "broker") == "down")
    bus.cut = False
    assert mill.act("like", "v1").status_code == 202
    mill.until(lambda: mill.engaged() == ["v1"])


def test_the_last_popularity_survives_a_restart_without_the_store(
    make_mill: Any, tmp_path: Path
) -> None:
    first = make_mill(state_dir=tmp_path)
    for user in range(4):
        first.act("like", "v33", user_id=f"fan-{user}")
    first.until(lambda: len(first.engaged("fan-3")) == 1)
    assert first.gateway.snapshot.refresh()
    first.gateway.snapshot.save()

    class Down(Frozen):
        def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
            del entity, ids, now_ms
            raise StoreDown("gone")

    second = make_mill(state_dir=tmp_path, store=Down(), streams=False)
    second.models.down = True
    assert second.gateway.snapshot.stale
    assert "v33" in _ids(second.feed(user_id="new", k=3))


def test_a_model_that_twice_fails_its_canary_is_loaded_again(mill: Any) -> None:
    def dead(_: Any) -> Any:
        raise ModelUnavailable("the stub is gone")

    watchdog = mill.gateway.watchdog
    watchdog.check()
    assert watchdog.state == {}
    mill.models.answers["queries"] = dead
    watchdog.check()
    assert (list(watchdog.state), mill.models.reloaded) == (["queries"], [])
    watchdog.check()
    assert mill.models.reloaded == ["queries"]


def test_a_breaker_lets_one_call_a_rest_through_and_closes_on_success() -> None:
    now = [0.0]
    breaker = Breaker(failures=2, rest_s=1.0, monotonic=lambda: now[0])
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 1.1
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
