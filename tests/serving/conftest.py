"""A gateway with everything behind it in memory: the real batcher, folds and HTTP API.

The bus, the store and the models are the fakes that ship with the packages.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi.testclient import TestClient

from features.live.worker import fold_delivery
from features.memory_store import MemoryFeatureStore
from models.release.canary import Canary
from models.release.store import Manifest
from serving.fakes import FakeModelClient
from serving.gateway import GatewayConfig, GatewayDependencies
from serving.http.app import create_app
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache
from serving.surfaces import StageDependencies
from streams.bus.contract import Bus, Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue
from streams.codec.batches import read_batch
from streams.contract.clock import WallClock
from streams.contract.events import CatalogueItem, ItemAdded
from streams.contract.topics import BEHAVIOUR, CATALOGUE, ENTITY_TOPIC, topic_specs
from streams.ingest import service
from streams.ingest.loop import IngestConfig

KEY = bytes(range(32))
CONFIG_FIELDS = {field.name for field in fields(GatewayConfig)}
_AT = 1_700_000_000_000
GENRES = ("Drama", "Comedy", "Thriller", "Sci-Fi", "Film-Noir", "Romance")


def items(count: int = 60) -> list[CatalogueItem]:
    """Items v0, v1, …: two genres each, so that some are similar and some are not."""
    return [
        CatalogueItem(
            video_id=f"v{n}",
            title=f"Video {n}",
            genres=(GENRES[n % 6], GENRES[(n // 6) % 6]),
            author_id=f"a{n % 9}",
            duration_ms=60_000 + n,
            created_ms=1_700_000_000_000 + n,
        )
        for n in range(count)
    ]


def catalogue_of(found: Sequence[CatalogueItem]) -> Catalogue:
    catalogue = Catalogue()
    for item in found:
        catalogue.apply(ItemAdded(event_id=f"add-{item.video_id}", event_time_ms=_AT, item=item))
    return catalogue


@dataclass
class MemoryReleases:
    """A release store in memory."""

    found: list[Manifest] = field(default_factory=list)
    canaries: dict[tuple[str, int], Canary] = field(default_factory=dict)
    folders: dict[tuple[str, int], Path] = field(default_factory=dict)

    def current(self) -> Manifest | None:
        return self.found[-1] if self.found else None

    def manifests(self) -> Sequence[Manifest]:
        return self.found

    def canary(self, model: str, version: int) -> Canary | None:
        return self.canaries.get((model, version))

    def bundle_folder(self, model: str, version: int) -> Path | None:
        return self.folders.get((model, version))

    def repair_lock(self, model: str, since_s: float) -> AbstractContextManager[bool]:
        del model, since_s
        return nullcontext(True)


def release(number: int, version: int = 1) -> Manifest:
    models = dict.fromkeys(("ranker", "queries", "reactivation"), version)
    return Manifest(f"r{number:04d}", models, created_ms=number)


@dataclass
class GatewayHarness:
    """A running gateway, the HTTP client of it and the fakes behind it."""

    client: TestClient
    deps: GatewayDependencies
    bus: Bus
    models: FakeModelClient
    releases: MemoryReleases

    @property
    def gateway(self) -> Any:
        return self.client.app.state.gateway  # type: ignore[attr-defined]

    def feed(self, user_id: str = "u1", **body: Any) -> dict[str, Any]:
        reply = self.client.post("/v1/feed", json={"user_id": user_id, "k": 8, "seed": 5} | body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def send_event(
        self, kind: str, item_id: str, user_id: str = "u1", **more: Any
    ) -> httpx.Response:
        return self.client.post("/v1/events", json=event(kind, item_id, user_id, **more))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Polls the condition; fails if it does not hold within `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"the condition did not hold within {seconds:g} s"
            time.sleep(0.02)

    def engaged(self, user_id: str = "u1") -> list[str]:
        features = self.client.get(f"/v1/users/{user_id}").json()["features"]
        return list(features["engaged_video_id"])


def event(kind: str, item_id: str, user_id: str = "u1", **more: Any) -> dict[str, Any]:
    return {
        "event_id": uuid.uuid4().hex,
        "user_id": user_id,
        "kind": kind,
        "video_id": item_id,
        "event_time_ms": time.time_ns() // 1_000_000,
    } | more


def fold_from(bus: Bus, store: Any, stop: threading.Event) -> list[threading.Thread]:
    """Folds every entity's topic into the store, as the workers do, without Faust."""

    def loop(topic: str, entity: Any) -> None:
        fold, consumer = fold_delivery(store, entity), bus.consumer([topic], f"fold-{entity}")
        topic_id = bus.topic_id(topic)
        while not stop.is_set():
            records = consumer.poll(500, 0.1)
            for record in records:
                stamp = Stamp(topic_id, record.partition, record.offset)
                if (table := read_batch(record)) is not None:
                    fold(Delivery(topic, stamp, table))
            if records:
                consumer.commit(records)

    threads = [
        threading.Thread(target=loop, args=(topic, entity), daemon=True)
        for entity, topic in ENTITY_TOPIC.items()
    ]
    for thread in threads:
        thread.start()
    return threads


def start_streams(
    bus: Bus, store: Any, stop: threading.Event, *, fold: bool = True
) -> list[threading.Thread]:
    """The real batcher and sequencer, and with `fold` the threads that write to the store."""

    def admit() -> None:
        service.run(bus, IngestConfig(), clock=WallClock(), stop=stop)

    thread = threading.Thread(target=admit, daemon=True)
    thread.start()
    return [thread, *(fold_from(bus, store, stop) if fold else [])]


@pytest.fixture
def make_harness() -> Iterator[Callable[..., GatewayHarness]]:
    """`make_harness(store=..., host=..., ...)` overrides dependencies and config by name."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    clients: list[TestClient] = []

    def make(**overrides: Any) -> GatewayHarness:
        bus = overrides.pop("bus", None) or MemoryBus()
        bus.ensure_topics(topic_specs(2))
        store = overrides.pop("store", None) or MemoryFeatureStore()
        models, releases = FakeModelClient(), MemoryReleases([release(1)])
        if overrides.pop("streams", True):
            threads.extend(start_streams(bus, store, stop))
        config = GatewayConfig(impression_key=KEY, popularity_every_s=60.0, monitor_every_s=60.0)
        config = replace(config, **{f: overrides.pop(f) for f in CONFIG_FIELDS & set(overrides)})
        deps = GatewayDependencies(
            bus=bus,
            store=store,
            models=models,
            catalogue=catalogue_of(items()),
            clock=WallClock(),
            config=config,
            releases=releases,
        )
        deps = replace(deps, **overrides)
        client = TestClient(create_app(deps))
        client.__enter__()
        clients.append(client)
        return GatewayHarness(client, deps, bus, models, releases)

    yield make
    for client in clients:
        client.__exit__(None, None, None)
    stop.set()
    for thread in threads:
        thread.join(5.0)


@pytest.fixture
def harness(make_harness: Callable[..., GatewayHarness]) -> GatewayHarness:
    return make_harness()


@pytest.fixture
def stage_deps() -> StageDependencies:
    """Stage dependencies without threads: an empty memory store, 60 items, fake models."""
    store, catalogue, clock = (
        MemoryFeatureStore(),
        LiveCatalogue(catalogue_of(items())),
        WallClock(),
    )
    popularity = PopularityCache(store, catalogue, clock)
    popularity.refresh()
    return StageDependencies(store, FakeModelClient(), catalogue, popularity, clock, Activity())


def add_item(bus: Bus, item: CatalogueItem) -> None:
    added = ItemAdded(event_id=uuid.uuid4().hex, event_time_ms=1_700_000_000_001, item=item)
    message = Outgoing(CATALOGUE, added.model_dump_json().encode(), item.video_id.encode())
    bus.producer().send([message])


def write_history(bus: Bus, users: int = 6, each: int = 14) -> None:
    """A replayed history of a few users; the last user has been dormant for 30 days."""
    messages = []
    for user in range(users):
        for step in range(each):
            ago_ms = (each - step) * 60_000 + (30 * 86_400_000 if user == users - 1 else 0)
            kind = ("play", "like", "long_view")[step % 3]
            body = event(kind, f"v{(user * 7 + step * 5) % 60}", f"user-{user}")
            body |= {"origin": "replayed", "event_time_ms": body["event_time_ms"] - ago_ms}
            messages.append(Outgoing(BEHAVIOUR, orjson.dumps(body), body["user_id"].encode()))
    bus.producer().send(messages)
