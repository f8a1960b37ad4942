"""What the log, the dead letters, the rows and the feedback hold beside what was sent.

Knows what each must be and finds what is not. Does not know what was done to them meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from benchmarks.events.processes import Mill
from benchmarks.exactness.stream import Sent
from benchmarks.exactness.truth import (
    expected_feedback,
    expected_rows,
    feedback_differences,
    row_differences,
)
from deploy import wiring
from features.definitions import DEFINITIONS
from features.offline.diff import diff
from features.store import EntityName
from streams.bus.contract import Bus
from streams.event_log import EventLog
from streams.feedback.store import read_feedback
from streams.ingest.dead_letters import Replayed, letters, replay


@dataclass
class Held:
    """One stack's stores, and what was sent to it. Every list is empty where all is right."""

    mill: Mill
    sent: Sent
    bus: Bus

    def __post_init__(self) -> None:
        self.log = EventLog(self.mill.settings.log_dir)
        self.store = wiring.feature_store(self.mill.settings)
        self._rows = {
            entity: expected_rows(self.sent.events, entity, self.sent.now_ms)
            for entity in DEFINITIONS
        }
        self._feedback = expected_feedback(self.sent.events, self.mill.settings.feedback.windows_ms)

    # how far it has come

    def logged(self) -> int:
        count = pl.len().alias("n")
        return int(self.log.segments.consistently(lambda s: s.select(count).collect()).item())

    def refused(self) -> int:
        return sum(1 for _ in letters(self.bus))

    def folded(self) -> bool:
        """Whether each entity counts as much as it must in all: cheaper than to compare."""
        return all(self._counted(entity) == self._to_count(entity) for entity in DEFINITIONS)

    def _to_count(self, entity: EntityName) -> int:
        return int(self._rows[entity].select(_whole_counts(entity)).sum().sum_horizontal().item())

    def _counted(self, entity: EntityName) -> int:
        ids = self._rows[entity][DEFINITIONS[entity].id_column].to_list()
        frames = (
            self.store.read(entity, ids[start : start + 5_000], self.sent.now_ms)
            for start in range(0, len(ids), 5_000)
        )
        return sum(int(np.sum(f.columns[name])) for f in frames for name in _whole_counts(entity))

    # what is wrong

    def log_differences(self) -> list[str]:
        """Each event counted once, each copy there and marked, each field and lateness right."""
        log = self.log.read(duplicates=True)
        events = self.sent.events
        wrong = _differing(log.filter(~pl.col("duplicate")), events, "counted")
        sent = events[self.sent.order]
        wrong += _differing(log, sent, "lies there")
        limit = self.mill.settings.admission.lateness_ms
        late = pl.col("event_time_ms") < pl.col("ingested_at_ms") - limit
        wrong += [
            f"log: {i} is marked wrongly" for i in log.filter(late != pl.col("late"))["event_id"]
        ]
        return wrong + _other_fields(log.filter(~pl.col("duplicate")).unique("event_id"), events)

    def letter_differences(self) -> list[str]:
        found = Counter(letter.record.value or b"" for letter in letters(self.bus))
        sent = Counter(self.sent.broken.values())
        return [f"dead letter {v!r}: {found[v]}, sent {sent[v]}" for v in found | sent
                if found[v] != sent[v]]  # fmt: skip

    def mended(self) -> Replayed:
        """Sends every dead letter again as it should have been."""
        mends = self.sent.mends()
        return replay(self.bus, lambda letter: mends.get(letter.record.value or b""))

    def row_differences(self, entity: EntityName) -> list[str]:
        expected = self._rows[entity]
        wrong = row_differences(self.store, entity, expected, self.sent.now_ms)
        sent = {*expected[DEFINITIONS[entity].id_column]}
        return wrong + [f"{entity} {i}: not sent" for i in {*self.store.ids(entity)} - sent]

    def rebuild_differences(self) -> Iterator[str]:
        """`tidemill features diff`: online rows beside a rebuild from the log."""
        for found in diff(self.mill.settings.log_dir, self.store, self.sent.now_ms):
            yield f"online is not the log's: {found}"

    def feedback_differences(self) -> list[str]:
        filed = read_feedback(self.mill.settings.feedback_dir).to_dicts()
        return feedback_differences(filed, self._feedback)


def _other_fields(log: pl.DataFrame, sent: pl.DataFrame) -> list[str]:
    both, wrong = sent.join(log, on="event_id", suffix="_held"), list[str]()
    for name in sent.columns:
        if name != "event_id":
            other = both.filter(pl.col(name).ne_missing(pl.col(f"{name}_held")))
            rows = other.select("event_id", f"{name}_held", name).rows()
            wrong += [f"log: {i}: {name} is {held}, sent {said}" for i, held, said in rows]
    return wrong


def _whole_counts(entity: EntityName) -> list[str]:
    return [name for name in DEFINITIONS[entity].count_columns if name.endswith("_all")]


def _differing(log: pl.DataFrame, sent: pl.DataFrame, verb: str) -> list[str]:
    """Event ids that do not come as often in the log as they were sent."""
    held = log.group_by("event_id").len("held")
    wanted = sent.group_by("event_id").len("sent")
    both = held.join(wanted, on="event_id", how="full", coalesce=True)
    wrong = both.filter(pl.col("held").ne_missing(pl.col("sent")))
    return [f"log: {i} {verb} {held or 0} times, sent {n or 0}" for i, held, n in wrong.rows()]
