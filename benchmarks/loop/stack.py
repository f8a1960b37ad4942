"""The stack of one arm: replayed history, then slates, feedback and updates of its own.

Knows the parts from admission to releases, through `benchmarks.declared.stack`. Does not know
worlds. With `fast` off, users' feature rows change once a day, so that what a user did today
changes no slate; what was played is still left out at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.declared.stack import OwnersStack
from deploy.settings import load
from features.definitions import COUNTED
from features.offline.point_in_time.replay import to_event_table
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.catalogue import CatalogueLog
from streams.contract.clock import HOUR_MS, ManualClock
from streams.contract.events import CatalogueItem
from streams.contract.items import ItemAdded
from streams.contract.topics import EVENTS_BY_USER, topic_specs
from streams.ingest.admission import AdmissionLimits
from streams.ingest.deduplication import SeenEvents

WINDOWS_MS = {
    "play": 600_000,
    "long_view": 1_800_000,
    "like": HOUR_MS,
    "follow": HOUR_MS,
    "order": HOUR_MS,
    "query_click": 600_000,
}  # the shipped ones but for orders, which the simulated users place at once


@dataclass
class LoopStack(OwnersStack):
    """fast: whether users' rows change with every event, or only in `start_day`.

    capped: whether the shipped caps of one user are in force.
    """

    fast: bool = True
    capped: bool = True
    _held: list[Delivery] = field(default_factory=list)

    def add_catalogue(self, items: Sequence[CatalogueItem]) -> None:
        """The items, into the log and the catalogue."""
        events = [
            ItemAdded(event_id=item.video_id, event_time_ms=item.created_ms, item=item)
            for item in items
        ]
        for event in events:
            self.catalogue.apply(event)
        CatalogueLog(self.settings.log_dir).append(events)

    def replay(self, frame: pl.DataFrame) -> None:
        """The history, as it was admitted when it happened."""
        table = to_event_table(frame)
        self._sent += table.num_rows
        delivery = Delivery(EVENTS_BY_USER, Stamp("t", 0, self._sent), table)
        self._log.append(delivery)
        self.fold(delivery)
        self.start_day()
        self.popularity.refresh()

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = AdmissionLimits(**self.settings.admission.model_dump())
        self._seen = SeenEvents(_memory_bus(), limits) if self.capped else None

    def marked(self, admitted: pa.Table) -> pa.Table:
        if self._seen is None:
            return admitted
        rows = admitted.num_rows
        duplicate = self._seen.cap(
            admitted, np.zeros(rows, bool), np.zeros(rows, np.int64), self.clock.now_ms()
        )
        at = admitted.schema.get_field_index("duplicate")
        return admitted.set_column(at, admitted.schema.field(at), pa.array(duplicate))

    def fold(self, delivery: Delivery) -> None:
        self.activity.fold(delivery.table)
        for entity in COUNTED:
            if self.fast or entity != "user":
                self.store.fold(entity, delivery.table, delivery.stamp)
        if not self.fast:
            self._held.append(delivery)

    def start_day(self) -> None:
        """Users' rows take in what was held back."""
        for delivery in self._held:
            self.store.fold("user", delivery.table, delivery.stamp)
        self._held.clear()

    def slate(self, user_id: str, k: int, seed: int) -> list[tuple[str, str]]:
        """Item ids and impression tokens of one reply of the feed."""
        reply = self.feed(user_id, k, seed)
        if reply["fallbacks"]:
            raise RuntimeError(f"a stage failed: {reply['fallbacks']}")
        return [(item["video_id"], item["impression"]) for item in reply["items"]]


def open_stack(
    home: Path,
    now_ms: int,
    items: Sequence[CatalogueItem],
    *,
    fast: bool = True,
    capped: bool = True,
) -> LoopStack:
    """A stack with the shipped declarations and the default exploration."""
    settings = load(home=home, feedback={"windows_ms": WINDOWS_MS})
    stack = LoopStack(
        settings,
        ManualClock(now_ms),
        drawn_share=settings.explore.weights_share,
        fast=fast,
        capped=capped,
    )
    stack.add_catalogue(items)
    return stack


def _memory_bus() -> MemoryBus:
    """A bus without records: nothing was seen before this week."""
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    return bus
