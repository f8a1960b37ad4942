"""Services fail and recover: there is always a reply, in time, and health reports the failure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.services import process
from deploy.services.process import ServiceUnavailable
from deploy.services.valkey import Valkey
from features.memory_store import MemoryFeatureStore
from features.online.connection import Connection
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName, FeatureFrame, StoreDown
from serving.clients.breaker import Breaker
from serving.clients.shared_replies import SharedReplies
from serving.pipeline.runner import Deadlines
from serving.state.feature_rows import KEEP_MS
from streams.bus.contract import BusError, Outgoing
from streams.bus.memory import MemoryBus

DEADLINES = Deadlines(200, 300, 300, 300)
LONGEST_REPLY_S = 1.1 + 0.5  # the sum of the deadlines, plus slack for a busy machine


def _ids(reply: dict[str, Any]) -> list[str]:
    return [item["video_id"] for item in reply["items"]]


def _stages(reply: dict[str, Any]) -> set[str]:
    return {fallback["stage"] for fallback in reply["fallbacks"]}


def _component(harness: Any, name: str) -> str:
    return str(harness.client.get("/healthz").json()["parts"][name]["status"])


@pytest.fixture
def restartable_valkey(tmp_path: Path) -> Any:
    """A Valkey that tests kill and restart on the same port."""
    part = Valkey(tmp_path, name="mortal")
    children = []

    class RestartableValkey:
        address = part.address

        def start(self) -> None:
            children.append(process.start(part))

        def kill(self) -> None:
            children[-1].kill()

        def freeze(self) -> None:
            """Connections stay open and nothing is answered."""
            os.kill(children[-1].pid, signal.SIGSTOP)

        def thaw(self) -> None:
            os.kill(children[-1].pid, signal.SIGCONT)

    try:
        valkey = RestartableValkey()
        valkey.start()
    except ServiceUnavailable as reason:
        pytest.skip(str(reason))
    yield valkey
    for child in children:
        child.stop()


def test_while_the_store_is_down_replies_use_the_last_good_rows_and_then_recover(
    make_harness: Any, restartable_valkey: Any
) -> None:
    store = FeastFeatureStore(restartable_valkey.address, 0, "faults", timeout_s=0.3)
    harness = make_harness(store=store, deadlines=DEADLINES, popularity_every_s=0.5)
    harness.send_event("like", "v5")
    harness.wait_until(lambda: harness.engaged() == ["v5"])
    good = harness.feed()
    assert (good["stale"], good["fallbacks"]) == (False, [])
    restartable_valkey.kill()
    harness.wait_until(lambda: _component(harness, "store") == "down")
    both = {"user_features", "video_features"}
    harness.wait_until(lambda: both <= _stages(harness.feed()))  # kept rows are served for 1 s
    reply = harness.feed()
    assert (reply["stale"], len(reply["items"])) == (True, 8)
    assert "v5" not in _ids(reply), "the last good row still lists what the user engaged with"
    assert harness.client.get("/healthz").status_code == 200
    unknown = harness.feed(user_id="unknown")
    assert (unknown["cold_start"], len(unknown["items"])) == (True, 8)
    restartable_valkey.start()
    harness.wait_until(
        lambda: _component(harness, "store") == "up" and not harness.feed()["fallbacks"], 15.0
    )
    assert harness.feed()["stale"] is False


def test_while_the_store_is_frozen_requests_are_answered_and_then_it_recovers(
    make_harness: Any, restartable_valkey: Any
) -> None:
    """SIGSTOP: without timeouts a reply would wait for SIGCONT."""
    address = restartable_valkey.address
    harness = make_harness(
        store=FeastFeatureStore(address, 0, "frozen", timeout_s=0.3),
        replies=SharedReplies(Connection(address, 0, 0.3), bytes(32)),
        deadlines=DEADLINES,
        popularity_every_s=0.5,
    )
    harness.send_event("like", "v5")
    harness.wait_until(lambda: harness.engaged() == ["v5"], 30.0)
    harness.wait_until(lambda: not harness.feed()["fallbacks"], 30.0)
    restartable_valkey.freeze()
    try:
        replies = [harness.feed(request_id="same") for _ in range(3)]
        harness.wait_until(lambda: _component(harness, "store") == "down", 30.0)
        erased = harness.client.post("/v1/erasures", json={"user_id": "u2"})
    finally:
        restartable_valkey.thaw()
    assert replies[0] == replies[1] == replies[2]
    assert "user_features" in _stages(replies[0])
    assert (replies[0]["stale"], len(replies[0]["items"])) == (True, 8)
    assert (erased.status_code, erased.headers["Retry-After"]) == (503, "1")
    harness.wait_until(
        lambda: _component(harness, "store") == "up" and not harness.feed()["fallbacks"], 30.0
    )
    assert harness.client.post("/v1/erasures", json={"user_id": "u2"}).status_code == 202


class HangingStore:
    """A store whose reads take `hang_s`, as behind a broken network."""

    def __init__(self) -> None:
        self.inner = MemoryFeatureStore()
        self.hang_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        time.sleep(self.hang_s)
        return self.inner.read(entity, ids, now_ms)


def test_a_hanging_store_delays_a_reply_by_at_most_the_deadlines(make_harness: Any) -> None:
    store = HangingStore()
    harness = make_harness(store=store, deadlines=DEADLINES)
    harness.feed()
    time.sleep(KEEP_MS / 1e3)  # items' rows that were read before are served no longer
    store.hang_s = 3.0
    started = time.monotonic()
    reply = harness.feed()
    took = time.monotonic() - started
    store.hang_s = 0.0
    assert took < LONGEST_REPLY_S
    assert len(reply["items"]) == 8
    assert {"user_features", "video_features"} <= _stages(reply)


def test_without_models_every_surface_answers_from_its_fallback(harness: Any) -> None:
    for item in ("v1", "v2", "v3"):
        harness.send_event("like", item)
    harness.wait_until(lambda: len(harness.engaged()) == 3)
    harness.models.down = True
    feed = harness.feed()
    assert "ranker" in _stages(feed)
    assert (feed["weights"], len(feed["items"])) == ({}, 8)
    body = {"user_id": "u1", "video_id": "v8", "k": 3}
    queries = harness.client.post("/v1/queries", json=body).json()
    assert "generated" in _stages(queries)
    assert len(queries["items"]) == 3
    back = harness.client.post("/v1/reactivation", json={"user_id": "u1"}).json()
    assert "trajectory" in _stages(back)
    assert not {"v1", "v2", "v3"} & set(_ids(back))
    harness.wait_until(lambda: _component(harness, "models") == "down")
    harness.models.down = False
    harness.wait_until(lambda: not harness.feed()["fallbacks"])
    harness.wait_until(lambda: _component(harness, "models") == "up")


class DisconnectableBus(MemoryBus):
    """A broker that rejects writes while `disconnected`."""

    disconnected = False

    def producer(self, transactional_id: str | None = None, **more: Any) -> Any:
        inner = super().producer(transactional_id, **more)
        bus = self

        class Producer:
            def __getattr__(self, name: str) -> Any:
                return getattr(inner, name)

            def send(self, messages: Sequence[Outgoing], **more: Any) -> Any:
                if bus.disconnected:
                    raise BusError("the broker is down")
                return inner.send(messages, **more)

        return Producer()

    def healthy(self, timeout_s: float = 1.0) -> bool:
        del timeout_s
        return not self.disconnected


def test_without_the_broker_feeds_still_work_and_events_are_rejected_with_a_reason(
    make_harness: Any,
) -> None:
    bus = DisconnectableBus()
    harness = make_harness(bus=bus)
    bus.disconnected = True
    refused = harness.send_event("like", "v1")
    assert refused.status_code == 503
    assert refused.headers["Retry-After"] == "1"
    assert len(harness.feed()["items"]) == 8
    harness.wait_until(lambda: _component(harness, "broker") == "down")
    bus.disconnected = False
    assert harness.send_event("like", "v1").status_code == 202
    harness.wait_until(lambda: harness.engaged() == ["v1"])


def test_popularity_survives_a_restart_without_the_store(make_harness: Any, tmp_path: Path) -> None:
    first = make_harness(state_dir=tmp_path)
    for user in range(4):
        first.send_event("like", "v33", user_id=f"fan-{user}")
    first.wait_until(lambda: len(first.engaged("fan-3")) == 1)
    assert first.gateway.popularity.refresh()
    first.gateway.popularity.save()

    class DownStore(HangingStore):
        def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
            del entity, ids, now_ms
            raise StoreDown("the store is down")

    second = make_harness(state_dir=tmp_path, store=DownStore(), streams=False)
    second.models.down = True
    assert second.gateway.popularity.stale
    assert "v33" in _ids(second.feed(user_id="new", k=3))


def test_an_open_breaker_admits_one_trial_call_and_closes_on_success() -> None:
    now = [0.0]
    breaker = Breaker(failures=2, retry_after_s=1.0, monotonic=lambda: now[0])
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 1.1
    assert breaker.allows()
    assert not breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
