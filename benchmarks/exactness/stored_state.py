"""Compares the log, the dead letters, the rows and the feedback with the events sent.

Knows what each must hold. Does not know which faults were injected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from benchmarks.events.cluster import Cluster
from benchmarks.exactness.expected import (
    expected_feedback,
    expected_rows,
    feedback_differences,
    row_differences,
)
from benchmarks.exactness.stream import Sent
from deploy import wiring
from features.definitions import DEFINITIONS
from features.offline.diff import diff_against_log
from features.store import EntityName
from streams.bus.contract import Bus
from streams.catalogue import CatalogueLog
from streams.contract.items import ItemAdded
from streams.event_log import EventLog
from streams.feedback.store import read_feedback
from streams.ingest.dead_letters import scan_dead_letters
from streams.ingest.replay import Replayed, replay


@dataclass
class StoredState:
    """A cluster's stores, and the events sent to it. A list is empty if nothing differs."""

    cluster: Cluster
    sent: Sent
    bus: Bus

    def __post_init__(self) -> None:
        self.log = EventLog(self.cluster.settings.log_dir)
        self.store = wiring.feature_store(self.cluster.settings)
        self._rows = {
            entity: expected_rows(self.sent.events, entity, self.sent.now_ms)
            for entity in DEFINITIONS
        }
        self._feedback = expected_feedback(
            self.sent.events, self.cluster.settings.feedback.windows_ms
        )

    # progress

    def logged(self) -> int:
        count = pl.len().alias("n")
        return int(self.log.segments.read_consistently(lambda s: s.select(count).collect()).item())

    def refused(self) -> int:
        return sum(1 for _ in scan_dead_letters(self.bus))

    def folded(self) -> bool:
        """Whether each entity's counts add up to those expected: cheaper than comparing rows."""
        return all(self._stored_sum(entity) == self._expected_sum(entity) for entity in DEFINITIONS)

    def _expected_sum(self, entity: EntityName) -> int:
        return int(self._rows[entity].select(_whole_counts(entity)).sum().sum_horizontal().item())

    def _stored_sum(self, entity: EntityName) -> int:
        ids = self._rows[entity][DEFINITIONS[entity].id_column].to_list()
        frames = (
            self.store.read(entity, ids[start : start + 5_000], self.sent.now_ms)
            for start in range(0, len(ids), 5_000)
        )
        return sum(int(np.sum(f.columns[name])) for f in frames for name in _whole_counts(entity))

    # differences

    def log_differences(self) -> list[str]:
        """Events not counted once, copies missing or unmarked, wrong fields or lateness marks."""
        log = self.log.read(duplicates=True)
        events = self.sent.events
        wrong = _differing(log.filter(~pl.col("duplicate")), events, "counted")
        sent = events[self.sent.order]
        wrong += _differing(log, sent, "is stored")
        limit = self.cluster.settings.admission.lateness_ms
        late = pl.col("event_time_ms") < pl.col("ingested_at_ms") - limit
        wrong += [
            f"log: {i} has a wrong lateness mark"
            for i in log.filter(late != pl.col("late"))["event_id"]
        ]
        return wrong + _other_fields(log.filter(~pl.col("duplicate")).unique("event_id"), events)

    def dead_letter_differences(self) -> list[str]:
        found = Counter(dead.record.value or b"" for dead in scan_dead_letters(self.bus))
        sent = Counter(self.sent.broken.values())
        return [f"dead letter {v!r}: {found[v]}, sent {sent[v]}" for v in found | sent
                if found[v] != sent[v]]  # fmt: skip

    def replay_repaired(self) -> Replayed:
        """Sends every dead letter again in its correct form."""
        repairs = self.sent.repairs()
        return replay(self.bus, lambda dead: repairs.get(dead.record.value or b""))

    def row_differences(self, entity: EntityName) -> list[str]:
        expected = self._rows[entity]
        wrong = row_differences(self.store, entity, expected, self.sent.now_ms)
        sent = {*expected[DEFINITIONS[entity].id_column]}
        return wrong + [f"{entity} {i}: not sent" for i in {*self.store.ids(entity)} - sent]

    def rebuild_differences(self) -> Iterator[str]:
        """`tidemill features diff`: online rows and a rebuild from the log."""
        for found in diff_against_log(self.cluster.settings.log_dir, self.store, self.sent.now_ms):
            yield f"online differs from the log: {found}"

    def feedback_differences(self) -> list[str]:
        stored = read_feedback(self.cluster.settings.feedback_dir).to_dicts()
        return feedback_differences(stored, self._feedback)

    def item_differences(self, stated: list[ItemAdded]) -> list[str]:
        """Items of the catalogue's log that are not those sent."""
        catalogue = CatalogueLog(self.cluster.settings.log_dir).load()
        wanted = {event.item.item_id: event.item for event in stated}
        found = {each: catalogue.get(each) for each in wanted}
        extra = [f"item {i}: not sent" for i in {*catalogue.available_ids()} - {*wanted}]
        return extra + [f"item {i} differs" for i in wanted if found[i] != wanted[i]]


def _other_fields(log: pl.DataFrame, sent: pl.DataFrame) -> list[str]:
    both, wrong = sent.join(log, on="event_id", suffix="_stored"), list[str]()
    for name in sent.columns:
        if name != "event_id":
            other = both.filter(pl.col(name).ne_missing(pl.col(f"{name}_stored")))
            rows = other.select("event_id", f"{name}_stored", name).rows()
            wrong += [f"log: {i}: {name} is {stored}, sent {value}" for i, stored, value in rows]
    return wrong


def _whole_counts(entity: EntityName) -> list[str]:
    return [name for name in DEFINITIONS[entity].count_columns if name.endswith("_all")]


def _differing(log: pl.DataFrame, sent: pl.DataFrame, verb: str) -> list[str]:
    """Event ids that are not in the log as often as they were sent."""
    stored = log.group_by("event_id").len("stored")
    wanted = sent.group_by("event_id").len("sent")
    both = stored.join(wanted, on="event_id", how="full", coalesce=True)
    wrong = both.filter(pl.col("stored").ne_missing(pl.col("sent")))
    return [f"log: {i} {verb} {stored or 0} times, sent {n or 0}" for i, stored, n in wrong.rows()]
