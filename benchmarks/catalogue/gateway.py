"""A gateway with a large catalogue of free tags, in one process, and users with histories.

Knows the fakes that ship with the packages: bus, store and models in memory. Does not know what is
measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from features.memory_store import MemoryFeatureStore
from serving.fakes import FakeModelClient
from serving.gateway import Gateway, GatewayConfig, GatewayDependencies
from streams.bus.contract import Outgoing, Stamp
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock
from streams.contract.events import KIND_CODE, CatalogueItem, ItemAdded, ItemChanged
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import CATALOGUE, topic_specs

VOCABULARY = 50_000  # distinct tags; drawn by a power law, as people's tags are
AT = 1_700_000_000_000
USERS, HISTORY = 200, 20


def items(count: int, tags: int, seed: int) -> Iterator[CatalogueItem]:
    """`count` items with at most `tags` free tags each."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        drawn = np.minimum(rng.zipf(1.3, size=tags), VOCABULARY) if tags else np.empty(0, int)
        yield CatalogueItem(
            video_id=f"v{number}",
            title=f"Item {number}",
            genres=tuple(dict.fromkeys(f"tag{tag}" for tag in drawn.tolist())),
            author_id=f"a{number % 997}",
            created_ms=AT + number,
        )


def catalogue_of(count: int, tags: int, seed: int = 0) -> Catalogue:
    catalogue = Catalogue()
    for item in items(count, tags, seed):
        catalogue.apply(ItemAdded(event_id=item.video_id, event_time_ms=AT, item=item))
    return catalogue


def _histories(count: int) -> pa.Table:
    """`HISTORY` likes of each user."""
    rng, now_ms = np.random.default_rng(1), time.time_ns() // 1_000_000
    rows = [
        {
            "event_id": f"e{user}-{step}", "user_id": f"u{user}", "kind": KIND_CODE["like"],
            "video_id": f"v{rng.integers(count)}", "event_time_ms": now_ms - 60_000 * step,
            "ingested_at_ms": now_ms, "surface": "feed", "origin": "live", "late": False,
            "duplicate": False, "source_partition": 0, "source_offset": user * HISTORY + step,
        }
        for user in range(USERS)
        for step in range(HISTORY)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=EVENT_SCHEMA)


@contextmanager
def gateway_of(catalogue: Catalogue) -> Iterator[tuple[Gateway, MemoryBus]]:
    """A running gateway on this catalogue, and its bus."""
    bus, store = MemoryBus(), MemoryFeatureStore()
    bus.ensure_topics(topic_specs(1))
    store.fold("user", _histories(len(catalogue)), Stamp("topic", 0, 0))
    config = GatewayConfig(impression_key=bytes(32), monitor_every_s=60.0)
    gateway = Gateway(
        GatewayDependencies(
            bus=bus,
            store=store,
            models=FakeModelClient(),
            catalogue=catalogue,
            clock=WallClock(),
            config=config,
        )
    )
    gateway.start()
    try:
        yield gateway, bus
    finally:
        gateway.stop()


class Changes(threading.Thread):
    """Changes items at `per_s` a second while `on` is set: half get other tags, half are new."""

    def __init__(self, bus: MemoryBus, count: int, tags: int, per_s: float) -> None:
        super().__init__(name="changes", daemon=True)
        self._producer, self._count, self._pause_s = bus.producer(), count, 1 / per_s
        self._items = items(1 << 30, tags, seed=2)
        self.on, self.over, self.sent = threading.Event(), threading.Event(), 0

    def run(self) -> None:
        while not self.over.wait(self._pause_s):
            if self.on.is_set():
                self._producer.send([Outgoing(CATALOGUE, self._change())])
                self.sent += 1

    def _change(self) -> bytes:
        number = self._count + self.sent if self.sent % 2 else self.sent * 7919 % self._count
        item = next(self._items).model_copy(update={"video_id": f"v{number}"})
        now_ms = time.time_ns() // 1_000_000
        event = ItemChanged(event_id=f"change-{self.sent}", event_time_ms=now_ms, item=item)
        return event.model_dump_json().encode()
