"""The law of the suite: after any fault, the platform holds exactly what was sent.

Knows how to compare event log, dead letters, rows of every entity and feedback with the stream,
with a rebuild from the log, and with each other. Does not know what faults were injected.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import polars as pl
from chaos_cluster import Cluster
from chaos_stream import Stream

from benchmarks.exactness.expected import (
    expected_feedback,
    expected_rows,
    feedback_differences,
    frame,
    row_differences,
)
from features.definitions import DEFINITIONS
from features.offline.backfill import backfill
from features.offline.diff import compare_stores
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName
from streams.contract.topics import FEEDBACK
from streams.feedback.store import read_feedback

SHOWN = 12  # differences named when a law fails
QUIET_S = 0.7  # for surplus messages to show up


@dataclass
class Verdict:
    """Compares a cluster with the stream that it was sent."""

    cluster: Cluster
    stream: Stream
    refused: Counter[bytes | None] = field(
        default_factory=Counter
    )  # good values that were refused, and resent since
    lost_topics: bool = False  # topics were deleted: do not check their content

    def assert_reached(self, within_s: float = 90.0) -> None:
        """Waits until everything has arrived, then proves that nothing is surplus."""
        cluster = self.cluster
        cluster.await_condition(
            lambda: cluster.logged_rows() >= self.stream.rows, "the log complete", within_s
        )
        cluster.await_condition(lambda: not self.of_rows(), "every row as sent", within_s)
        cluster.await_condition(
            lambda: not self.of_dead_letters(), "every dead letter there", within_s
        )
        cluster.await_condition(lambda: not self.of_feedback(), "all feedback joined", within_s)
        cluster.note("everything has arrived")
        quiet = time.monotonic() + QUIET_S
        cluster.await_condition(lambda: time.monotonic() > quiet, "quiet")
        wrong = [*self.of_log(), *self.of_dead_letters(), *self.of_rows(), *self.of_feedback()]
        wrong += [*([] if self.lost_topics else self.of_feedback_topic()), *self.of_rebuild()]
        assert not wrong, "\n".join([*wrong[:SHOWN], f"{len(wrong)} differences", cluster.report()])

    @cached_property
    def _events(self) -> pl.DataFrame:
        return frame(self.stream.good)

    @cached_property
    def _rows(self) -> dict[EntityName, pl.DataFrame]:
        now = self.stream.now_ms
        return {entity: expected_rows(self._events, entity, now) for entity in DEFINITIONS}

    def of_log(self) -> list[str]:
        """Each event once, further copies marked as duplicates, late ones marked late."""
        log = self.cluster.log.read(duplicates=True)
        once = Counter(log.filter(~pl.col("duplicate"))["event_id"].to_list())
        copies = Counter(log["event_id"].to_list())
        wrong = [f"log: {i} counted {once[i]} times" for i in copies if once[i] != 1]
        wrong += [
            f"log: {i} is in it {copies[i]} times, sent {sent}"
            for i, sent in self.stream.copies.items()
            if copies[i] != sent
        ]
        limit = self.cluster.settings().admission.lateness_ms
        late = pl.col("event_time_ms") < pl.col("ingested_at_ms") - limit
        marks = log.filter(late != pl.col("late")).height
        wrong += [f"log: {marks} late marks are wrong"] if marks else []
        content = log.filter(~pl.col("duplicate")).select(self._events.columns).sort("event_id")
        if not content.equals(self._events.sort("event_id")):
            wrong.append("log: an event's fields differ from those sent")
        return wrong

    def of_dead_letters(self) -> list[str]:
        """Exactly the refused values, each as often as it was sent."""
        dead = Counter(letter.record.value for letter in self.cluster.dead())
        sent = Counter(self.stream.bad) + self.refused
        return [f"dead letter {v!r}: {dead[v]}, sent {sent[v]}" for v in dead | sent
                if dead[v] != sent[v]]  # fmt: skip

    def of_rows(self) -> list[str]:
        """Every entity's values, and no row of an id that was not sent."""
        store, now = self.cluster.store, self.stream.now_ms
        wrong = []
        for entity, expected in self._rows.items():
            wrong += row_differences(store, entity, expected, now)
            sent = {*expected[DEFINITIONS[entity].id_column]}
            wrong += [f"{entity} {i}: not sent" for i in {*store.ids(entity)} - sent]
        return wrong

    def of_feedback(self) -> list[str]:
        settings = self.cluster.settings()
        expected = expected_feedback(self._events, settings.feedback.windows_ms)
        return feedback_differences(read_feedback(settings.feedback_dir).to_dicts(), expected)

    def of_feedback_topic(self) -> list[str]:
        """The last published revision of each impression is the stored one."""
        bus, newest = self.cluster.bus, dict[str, dict[str, Any]]()
        for partition, (start, stop) in bus.ends(FEEDBACK).items():
            for record in bus.scan(FEEDBACK, partition, start, stop):
                row = orjson.loads(record.value or b"{}")
                known = newest.get(row["impression_id"], row)
                newest[row["impression_id"]] = max(known, row, key=lambda r: r["revision"])
        stored = read_feedback(self.cluster.settings().feedback_dir).to_dicts()
        return [f"feedback {row['impression_id']}: published {newest.get(row['impression_id'])}, "
                f"stored {row}" for row in stored if newest.get(row["impression_id"]) != row]  # fmt: skip

    def of_rebuild(self) -> list[str]:
        """Online rows equal the rows that a backfill makes from the log."""
        cluster = self.cluster
        rebuilt = FeastFeatureStore(cluster.servers.valkey.address, 1, "rebuilt")
        backfill(cluster.settings().log_dir, rebuilt, chunk_rows=1_000)
        found = []
        for entity in DEFINITIONS:
            ids = sorted({*rebuilt.ids(entity), *cluster.store.ids(entity)})
            found += compare_stores(entity, ids, cluster.store, rebuilt, self.stream.now_ms)
        rebuilt.tear_down()
        return [f"online differs from the log: {difference}" for difference in found]
