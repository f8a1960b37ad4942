"""Feedback on disk and on its topic: upserts by impression, of which the last one stands.

Knows files, revisions and the topic `feedback`. Does not know what an event says
(`streams.feedback.join`) nor how that adds up (`streams.feedback.outcomes`). The files are the state: a
restart reads them back, and a batch that comes again finds its effect there and changes
nothing, revision included.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import polars as pl
import pyarrow as pa

from streams.bus.contract import Outgoing, Producer
from streams.bus.delivery import Delivery
from streams.contract.impression import Impression
from streams.contract.topics import FEEDBACK
from streams.feedback.join import Join, Joined, Refusal
from streams.feedback.outcomes import FEEDBACK_SCHEMA, Known, Outcomes, Windows, from_row, unknown
from streams.storage.segments import Segments

_log = logging.getLogger(__name__)

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
        self._known: dict[str, Known] = {}
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
        joined = self._join.batch(delivery.table)
        with self._lock:
            if joined.impressions:
                self._take(delivery, joined)
        if joined.refused:
            self._refused(joined.refused)

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's rows served until `at_ms`, now and when they come again."""
        with self._lock:
            removed = self.segments.erase(user_id, at_ms)
            self._filed = None  # read back, without the user, by the next batch
            self._known.clear()
            return removed

    def _take(self, delivery: Delivery, joined: Joined) -> None:
        last = delivery.stamp
        place = (last.epoch, last.partition)
        filed = self.segments.last_offset(*place)
        if self._filed is None or self._filed.get(place, -1) != filed:
            self._rebuild()
        states = _states(delivery, joined, self._recalled(joined.impressions), filed)
        table = self.segments.without_erased(states.table(self._windows))
        if table.num_rows:
            self._publish(table)
            self.segments.append(last, table)
            self._filed = {**(self._filed or {}), place: last.offset}
            kept = set(table["impression_id"].to_pylist())
            self._known |= {known[0]: known for known in states.known() if known[0] in kept}
            self._forget()

    def _publish(self, table: pa.Table) -> None:
        if self._producer is not None:
            self._producer.send(_upserts(table))

    def _rebuild(self) -> None:
        """Reads every impression back, then keeps as many as are remembered."""
        self._filed = self.segments.last_offsets()
        rows = self.segments.consistently(lambda scan: _latest(scan).collect())
        self._known = _by_id(rows)
        self._known_after_ms = None
        self._forget()
        _log.info("feedback: %d impressions read back", rows.height)

    def _recalled(self, impressions: Mapping[str, Impression]) -> Outcomes:
        """What is known of them, in their order."""
        self._read_back(impressions)
        return Outcomes.of(
            [self._known.get(i) or unknown(i, told) for i, told in impressions.items()]
        )

    def _read_back(self, impressions: Mapping[str, Impression]) -> None:
        """Those that were forgotten; an impression served later cannot be among them."""
        if self._known_after_ms is None:
            return
        missing = [
            impression_id
            for impression_id, impression in impressions.items()
            if impression_id not in self._known and impression.served_at_ms <= self._known_after_ms
        ]
        if missing:
            rows = self.segments.consistently(
                lambda scan: _latest(scan.filter(pl.col("impression_id").is_in(missing))).collect()
            )
            self._known |= _by_id(rows)

    def _forget(self) -> None:
        """Beyond twice the number to remember, keeps those that were served last."""
        if len(self._known) <= 2 * self._remembered:
            return
        by_age = sorted(self._known.items(), key=lambda item: item[1][1].served_at_ms)
        forgotten = by_age[: -self._remembered]
        newest_forgotten = forgotten[-1][1][1].served_at_ms
        self._known_after_ms = max(newest_forgotten, self._known_after_ms or 0)
        self._known = dict(by_age[-self._remembered :])


def _states(delivery: Delivery, joined: Joined, outcomes: Outcomes, filed: int) -> Outcomes:
    """Every state that an impression newly comes to, message by message; those up to the
    offset `filed` have had their effect."""
    states, end = [], 0
    for message in delivery.messages:
        first, end = end, end + message.table.num_rows
        if message.stamp.offset > filed:
            changed = outcomes.merge(joined.told.between(first, end))
            states.append(outcomes.take(changed))
    return Outcomes.joint(states)


def _by_id(rows: pl.DataFrame) -> dict[str, Known]:
    return {row["impression_id"]: from_row(row) for row in rows.iter_rows(named=True)}


def _upserts(table: pa.Table) -> list[Outgoing]:
    """One JSON object a row."""
    written = BytesIO()
    pl.DataFrame(table).write_ndjson(written)
    lines = written.getvalue().splitlines()
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
