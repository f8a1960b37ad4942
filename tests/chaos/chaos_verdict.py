"""The law of the whole suite: whatever was done to it, the platform holds what was sent.

Event log, dead letters, rows of every entity and feedback beside the stream, beside a rebuild
from the log, and beside each other.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import polars as pl
from chaos_stream import Stream
from chaos_world import World

from benchmarks.exactness.truth import (
    expected_feedback,
    expected_rows,
    feedback_differences,
    frame,
    row_differences,
)
from features.definitions import DEFINITIONS
from features.offline.backfill import backfill
from features.offline.diff import compare
from features.online.redis_store import FeastFeatureStore
from features.store import EntityName
from streams.contract.topics import FEEDBACK
from streams.feedback.store import read_feedback

SHOWN = 12  # differences named when a law fails
QUIET_S = 0.7  # what should not come has time to come


@dataclass
class Verdict:
    """Compares one world with the stream that it was sent."""

    world: World
    stream: Stream
    refused: Counter[bytes | None] = field(default_factory=Counter)  # good ones, sent again since
    lost_topics: bool = False  # topics were deleted: what they said is not asked for

    def awaited(self, within_s: float = 90.0) -> None:
        """Waits until everything is in its place, then proves that nothing came on top."""
        world = self.world
        world.until(lambda: world.logged() >= self.stream.rows, "the log whole", within_s)
        world.until(lambda: not self.of_rows(), "every row as sent", within_s)
        world.until(lambda: not self.of_letters(), "every dead letter there", within_s)
        world.until(lambda: not self.of_feedback(), "all feedback joined", within_s)
        world.tell("everything is there")
        quiet = time.monotonic() + QUIET_S
        world.until(lambda: time.monotonic() > quiet, "quiet")
        wrong = [*self.of_log(), *self.of_letters(), *self.of_rows(), *self.of_feedback()]
        wrong += [*([] if self.lost_topics else self.of_feedback_topic()), *self.of_rebuild()]
        assert not wrong, "\n".join([*wrong[:SHOWN], f"{len(wrong)} differences", world.told()])

    @cached_property
    def _events(self) -> pl.DataFrame:
        return frame(self.stream.good)

    @cached_property
    def _rows(self) -> dict[EntityName, pl.DataFrame]:
        now = self.stream.now_ms
        return {entity: expected_rows(self._events, entity, now) for entity in DEFINITIONS}

    def of_log(self) -> list[str]:
        """Each event once, each further copy marked, what was late marked late."""
        log = self.world.log.read(duplicates=True)
        once = Counter(log.filter(~pl.col("duplicate"))["event_id"].to_list())
        copies = Counter(log["event_id"].to_list())
        wrong = [f"log: {i} counted {once[i]} times" for i in copies if once[i] != 1]
        wrong += [
            f"log: {i} lies there {copies[i]} times, sent {sent}"
            for i, sent in self.stream.copies.items()
            if copies[i] != sent
        ]
        limit = self.world.settings().admission.lateness_ms
        late = pl.col("event_time_ms") < pl.col("ingested_at_ms") - limit
        marks = log.filter(late != pl.col("late")).height
        wrong += [f"log: {marks} marks of lateness are wrong"] if marks else []
        content = log.filter(~pl.col("duplicate")).select(self._events.columns).sort("event_id")
        if not content.equals(self._events.sort("event_id")):
            wrong.append("log: an event's fields are not those sent")
        return wrong

    def of_letters(self) -> list[str]:
        """Exactly what was refused, each as often as it was sent."""
        dead = Counter(letter.record.value for letter in self.world.dead())
        sent = Counter(self.stream.bad) + self.refused
        return [f"dead letter {v!r}: {dead[v]}, sent {sent[v]}" for v in dead | sent
                if dead[v] != sent[v]]  # fmt: skip

    def of_rows(self) -> list[str]:
        """Every entity's values, and no row of an id that nobody sent."""
        store, now = self.world.store, self.stream.now_ms
        wrong = []
        for entity, expected in self._rows.items():
            wrong += row_differences(store, entity, expected, now)
            sent = {*expected[DEFINITIONS[entity].id_column]}
            wrong += [f"{entity} {i}: not sent" for i in {*store.ids(entity)} - sent]
        return wrong

    def of_feedback(self) -> list[str]:
        settings = self.world.settings()
        expected = expected_feedback(self._events, settings.feedback.windows_ms)
        return feedback_differences(read_feedback(settings.feedback_dir).to_dicts(), expected)

    def of_feedback_topic(self) -> list[str]:
        """The last revision of each impression that was published is the one that is filed."""
        bus, newest = self.world.bus, dict[str, dict[str, Any]]()
        for partition, (start, stop) in bus.ends(FEEDBACK).items():
            for record in bus.scan(FEEDBACK, partition, start, stop):
                row = orjson.loads(record.value or b"{}")
                known = newest.get(row["impression_id"], row)
                newest[row["impression_id"]] = max(known, row, key=lambda r: r["revision"])
        filed = read_feedback(self.world.settings().feedback_dir).to_dicts()
        return [f"feedback {row['impression_id']}: published {newest.get(row['impression_id'])}, "
                f"filed {row}" for row in filed if newest.get(row["impression_id"]) != row]  # fmt: skip

    def of_rebuild(self) -> list[str]:
        """Online rows beside rows that a backfill makes of the log."""
        world = self.world
        rebuilt = FeastFeatureStore(world.servers.valkey.address, 1, "rebuilt")
        backfill(world.settings().log_dir, rebuilt, chunk_rows=1_000)
        found = []
        for entity in DEFINITIONS:
            ids = sorted({*rebuilt.ids(entity), *world.store.ids(entity)})
            found += compare(entity, ids, world.store, rebuilt, self.stream.now_ms)
        rebuilt.tear_down()
        return [f"online is not the log's: {difference}" for difference in found]
