"""A whole mill in memory: the real batcher, fold and gateway; a fake model client.

The bus, the store and the models are the fakes that ship with the packages.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import orjson
import pytest
from fastapi.testclient import TestClient

from features.live.worker import fold_delivery
from features.memory_store import MemoryFeatureStore
from models.release.bundle import Manifest
from serving.fakes import FakeModelClient
from serving.http.app import Dependencies, create_app
from serving.pipeline.surfaces import Parts
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import Snapshot
from streams.bus.contract import Bus, Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock
from streams.contract.events import CatalogueItem, ItemAdded
from streams.contract.schema import from_ipc
from streams.contract.topics import BEHAVIOUR, CATALOGUE, ENTITY_TOPIC, topic_specs
from streams.ingest import service as batcher
from streams.ingest.admission import AdmissionLimits

KEY = bytes(range(32))
GENRES = ("Drama", "Comedy", "Thriller", "Sci-Fi", "Film-Noir", "Romance")


def items(count: int = 60) -> list[CatalogueItem]:
    """Videos v0..: two genres each, so that some are near each other and some are not."""
    return [
        CatalogueItem(
            video_id=f"v{n}",
            title=f"Video {n}",
            genres=(GENRES[n % 6], GENRES[(n // 6) % 6]),
            author_id=f"a{n % 9}",
            duration_ms=60_000 + n,
            created_ms=1_000_000 + n,
        )
        for n in range(count)
    ]


def folded(found: Sequence[CatalogueItem]) -> Catalogue:
    catalogue = Catalogue()
    for item in found:
        catalogue.apply(ItemAdded(event_id=f"add-{item.video_id}", event_time_ms=1, item=item))
    return catalogue


@dataclass
class Book:
    """A release book in memory."""

    found: list[Manifest] = field(default_factory=list)

    def current(self) -> Manifest | None:
        return self.found[-1] if self.found else None

    def manifests(self) -> Sequence[Manifest]:
        return self.found


def release(number: int, version: int = 1) -> Manifest:
    models = dict.fromkeys(("ranker", "queries", "reactivation"), version)
    return Manifest(f"r{number:04d}", models, created_ms=number)


@dataclass
class Mill:
    """A gateway with everything behind it. `client` speaks HTTP to it."""

    client: TestClient
    deps: Dependencies
    bus: Bus
    models: FakeModelClient
    book: Book

    @property
    def gateway(self) -> Any:
        return self.client.app.state.gateway  # type: ignore[attr-defined]

    def feed(self, user_id: str = "u1", **body: Any) -> dict[str, Any]:
        reply = self.client.post("/v1/feed", json={"user_id": user_id, "k": 8, "seed": 5} | body)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def act(self, kind: str, video_id: str, user_id: str = "u1", **more: Any) -> httpx.Response:
        return self.client.post("/v1/events", json=event(kind, video_id, user_id, **more))

    def until(self, holds: Callable[[], bool], seconds: float = 8.0) -> None:
        """Waits for what other threads bring about; fails when it does not come."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, "it did not come about"
            time.sleep(0.02)

    def engaged(self, user_id: str = "u1") -> list[str]:
        features = self.client.get(f"/v1/users/{user_id}").json()["features"]
        return list(features["engaged_video_id"])


def event(kind: str, video_id: str, user_id: str = "u1", **more: Any) -> dict[str, Any]:
    return {
        "event_id": uuid.uuid4().hex,
        "user_id": user_id,
        "kind": kind,
        "video_id": video_id,
        "event_time_ms": time.time_ns() // 1_000_000,
    } | more


def fold_from(bus: Bus, store: Any, stop: threading.Event) -> list[threading.Thread]:
    """The fold workers' work, without Faust: every entity's topic into the store."""

    def loop(topic: str, entity: Any) -> None:
        fold, consumer = fold_delivery(store, entity), bus.consumer([topic], f"fold-{entity}")
        epoch = bus.epoch(topic)
        while not stop.is_set():
            records = consumer.poll(500, 0.1)
            for record in records:
                stamp = Stamp(epoch, record.partition, record.offset)
                fold(Delivery(topic, stamp, from_ipc(record.value or b"")))
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
    """The real batcher and sequencer, and the folds unless the store's writes are to be off."""

    def admit() -> None:
        batcher.run(bus, clock=WallClock(), limits=AdmissionLimits(), stop=stop)

    thread = threading.Thread(target=admit, daemon=True)
    thread.start()
    return [thread, *(fold_from(bus, store, stop) if fold else [])]


@pytest.fixture
def make_mill() -> Iterator[Callable[..., Mill]]:
    """`make_mill(store=..., host=..., ...)`: overrides go into `Dependencies`."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    clients: list[TestClient] = []

    def make(**overrides: Any) -> Mill:
        bus = overrides.pop("bus", None) or MemoryBus()
        bus.ensure_topics(topic_specs(2))
        store = overrides.pop("store", None) or MemoryFeatureStore()
        models, book = FakeModelClient(), Book([release(1)])
        if overrides.pop("streams", True):
            threads.extend(start_streams(bus, store, stop))
        deps = Dependencies(
            bus=bus,
            store=store,
            models=models,
            catalogue=folded(items()),
            clock=WallClock(),
            impression_key=KEY,
            releases=book,
            snapshot_every_s=60.0,
            watchdog_every_s=60.0,
        )
        deps = replace(deps, **overrides)
        client = TestClient(create_app(deps))
        client.__enter__()
        clients.append(client)
        return Mill(client, deps, bus, models, book)

    yield make
    for client in clients:
        client.__exit__(None, None, None)
    stop.set()
    for thread in threads:
        thread.join(5.0)


@pytest.fixture
def mill(make_mill: Callable[..., Mill]) -> Mill:
    return make_mill()


@pytest.fixture
def parts() -> Parts:
    """Parts without threads: an empty memory store, sixty videos, fake models."""
    store, catalogue, clock = MemoryFeatureStore(), LiveCatalogue(folded(items())), WallClock()
    snapshot = Snapshot(store, catalogue, clock)
    snapshot.refresh()
    return Parts(store, FakeModelClient(), catalogue, snapshot, clock, Activity())


def add_item(bus: Bus, item: CatalogueItem) -> None:
    added = ItemAdded(event_id=uuid.uuid4().hex, event_time_ms=2, item=item)
    message = Outgoing(CATALOGUE, added.model_dump_json().encode(), item.video_id.encode())
    bus.producer().send([message])


def write_history(bus: Bus, users: int = 6, each: int = 14) -> None:
    """A few users' past, labelled as what it is: the last user fell silent long ago."""
    messages = []
    for user in range(users):
        for step in range(each):
            ago_ms = (each - step) * 60_000 + (30 * 86_400_000 if user == users - 1 else 0)
            kind = ("play", "like", "long_view")[step % 3]
            fields = event(kind, f"v{(user * 7 + step * 5) % 60}", f"user-{user}")
            fields |= {"origin": "replayed", "event_time_ms": fields["event_time_ms"] - ago_ms}
            messages.append(Outgoing(BEHAVIOUR, orjson.dumps(fields), fields["user_id"].encode()))
    bus.producer().send(messages)
