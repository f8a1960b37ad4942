"""Feedback on disk and on its topic: upserts by impression, of which the last one stands.

Knows files, revisions and the topic `feedback`. Does not know how an event becomes an
outcome (`streams.feedback`). The files are the state: a restart reads them back, and a
batch that comes again finds its effect there and changes nothing, revision included.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from streams.bus import Outgoing, Producer, Stamp
from streams.delivery import Delivery
from streams.feedback import FEEDBACK_SCHEMA, Join, Outcome, Refusal, Windows, from_row, to_table
from streams.segments import Segments
from streams.topics import FEEDBACK

_log = logging.getLogger(__name__)

State = tuple[Outcome, int]  # an outcome and its revision
REMEMBERED = 200_000  # impressions kept in memory; one served earlier is read from disk when needed


def segments_of(directory: Path, *, sync: bool = False) -> Segments:
    """The files of a `FeedbackStore`: rows of FEEDBACK_SCHEMA by the hour they were served in."""
    distinct = ("impression_id", "request_id")
    return Segments(
        directory, FEEDBACK_SCHEMA, times=("served_at_ms",), distinct=distinct, sync=sync
    )


class FeedbackStore:
    """Joins deliveries of EVENTS_BY_USER into feedback. `join` is a `BatchHandler`.

    One partition's impressions are its own, since a token counts for its user only and
    a user has one partition; so partitions may live in different processes, and move
    between them: what another process has filed is noticed and read back.
    """

    def __init__(
        self,
        directory: Path,
        *,
        key: bytes,
        windows_ms: Mapping[str, int],
        producer: Producer | None = None,
        refused: Callable[[Counter[Refusal]], None] = lambda _: None,
        sync: bool = False,
        remembered: int = REMEMBERED,
    ) -> None:
        """`key` signed the impressions; upserts go to `producer`'s topic `feedback`, if given."""
        self._join = Join(key)
        self._windows = Windows(windows_ms)
        self.segments = segments_of(directory, sync=sync)
        self._producer = producer
        self._refused = refused
        self._remembered = remembered
        self._known: dict[str, State] = {}
        self._known_after_ms: int | None = None  # None: `_known` holds every impression on disk
        self._filed: dict[tuple[str, int], int] | None = None  # last offsets that `_known` reflects
        self._lock = threading.Lock()

    def join(self, delivery: Delivery) -> None:
        """Publishes and files what the batch changes.

        Published first: a crash in between publishes the same revision again, never
        none. Of a combined delivery each message makes its own revisions, so that these
        are the same however messages are combined; they are published and filed as one.
        Raises what the producer or the disk raises, with nothing taken in.
        """
        joined = [(m.stamp, self._join.batch(m.table)) for m in delivery.messages]
        found = [(stamp, one.outcomes) for stamp, one in joined if one.outcomes]
        with self._lock:
            if found:
                self._take(found)
        if refused := sum((one.refused for _, one in joined), Counter[Refusal]()):
            self._refused(refused)

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's rows served until `at_ms`, now and when they come again."""
        with self._lock:
            removed = self.segments.erase(user_id, at_ms)
            self._filed = None  # read back, without the user, by the next batch
            self._known.clear()
            return removed

    def _take(self, messages: Sequence[tuple[Stamp, Mapping[str, Outcome]]]) -> None:
        last = messages[-1][0]
        place = (last.epoch, last.partition)
        filed = self.segments.last_offset(*place)
        if self._filed is None or self._filed.get(place, -1) != filed:
            self._rebuild()
        changed = self._changed([o for stamp, o in messages if stamp.offset > filed])
        table = self.segments.without_erased(to_table(changed, self._windows))
        if table.num_rows:
            self._publish(table)
            self.segments.append(last, table)
            self._filed = {**(self._filed or {}), place: last.offset}
            kept = set(table["impression_id"].to_pylist())
            newest = {state[0].impression.impression_id: state for state in changed}
            self._known |= {i: state for i, state in newest.items() if i in kept}
            self._forget()

    def _changed(self, messages: Sequence[Mapping[str, Outcome]]) -> list[State]:
        """Every state that an impression newly comes to, message by message."""
        newest: dict[str, State] = {}
        changed: list[State] = []
        for outcomes in messages:
            self._recall(outcomes)
            for impression_id, outcome in outcomes.items():
                known = newest.get(impression_id) or self._known.get(impression_id)
                before, revision = known or (None, 0)
                after = before.merge(outcome) if before else outcome
                if after != before:
                    newest[impression_id] = (after, revision + 1)
                    changed.append(newest[impression_id])
        return changed

    def _publish(self, table: pa.Table) -> None:
        if self._producer is not None:
            self._producer.send(_upserts(table))

    def _rebuild(self) -> None:
        """Reads every impression back, then keeps as many as are remembered."""
        self._filed = self.segments.last_offsets()
        rows = self.segments.consistently(lambda scan: _latest(scan).collect())
        self._known = {row["impression_id"]: from_row(row) for row in rows.iter_rows(named=True)}
        self._known_after_ms = None
        self._forget()
        _log.info("feedback: %d impressions read back", rows.height)

    def _recall(self, outcomes: Mapping[str, Outcome]) -> None:
        """Reads back those that were forgotten; an impression served later cannot be among them."""
        if self._known_after_ms is None:
            return
        missing = [
            impression_id
            for impression_id, outcome in outcomes.items()
            if impression_id not in self._known
            and outcome.impression.served_at_ms <= self._known_after_ms
        ]
        if missing:
            rows = self.segments.consistently(
                lambda scan: _latest(scan.filter(pl.col("impression_id").is_in(missing))).collect()
            )
            self._known |= {row["impression_id"]: from_row(row) for row in rows.to_dicts()}

    def _forget(self) -> None:
        """Beyond twice the number to remember, keeps those that were served last."""
        if len(self._known) <= 2 * self._remembered:
            return
        by_age = sorted(self._known.items(), key=lambda item: item[1][0].impression.served_at_ms)
        forgotten = by_age[: -self._remembered]
        newest_forgotten = forgotten[-1][1][0].impression.served_at_ms
        self._known_after_ms = max(newest_forgotten, self._known_after_ms or 0)
        self._known = dict(by_age[-self._remembered :])


def _upserts(table: pa.Table) -> list[Outgoing]:
    """One JSON object a row."""
    lines = pl.DataFrame(table).write_ndjson().encode().splitlines()
    keys = table["impression_id"].to_pylist()
    return [Outgoing(FEEDBACK, line, key.encode()) for key, line in zip(keys, lines, strict=True)]


def _latest(scan: pl.LazyFrame) -> pl.LazyFrame:
    newest = pl.col("revision") == pl.col("revision").max().over("impression_id")
    return scan.filter(newest).unique("impression_id")


def read_feedback(directory: Path) -> pl.DataFrame:
    """Every impression's last revision (FEEDBACK_SCHEMA), by (served_at_ms, impression_id)."""
    rows = segments_of(directory).consistently(lambda scan: _latest(scan).collect())
    return rows.select(FEEDBACK_SCHEMA.names).sort("served_at_ms", "impression_id")


def read_matured(directory: Path, since_ms: int, until_ms: int) -> pl.DataFrame:
    """Impressions whose last window closed in `(since_ms, until_ms]`, last revision each.

    Consecutive calls with a watermark as `since_ms` give every matured impression once.
    Ordered by (matured_at_ms, impression_id); FEEDBACK_SCHEMA's columns.
    """
    matured = (pl.col("matured_at_ms") > since_ms) & (pl.col("matured_at_ms") <= until_ms)
    rows = read_feedback(directory).filter(matured)
    return rows.sort("matured_at_ms", "impression_id")
