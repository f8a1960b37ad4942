"""Feedback on disk and on its topic: upserts by impression, of which the last one counts.

Knows files, revisions and the topic `feedback`. Does not know how events become actions
(`streams.feedback.join`) nor how actions merge (`streams.feedback.outcomes`). The files are the
state: a restart reads them back. A batch that is delivered again finds its effect there and
changes nothing, including the revision.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import polars as pl
import pyarrow as pa

from streams.bus.contract import Outgoing, Producer
from streams.bus.delivery import Delivery
from streams.contract.declaration import contract
from streams.contract.impression import Impression
from streams.contract.topics import FEEDBACK
from streams.feedback.join import FeedbackJoin, JoinedBatch, TokenRejection
from streams.feedback.outcomes import (
    AttributionWindows,
    ImpressionColumns,
    ImpressionState,
    task_columns,
)
from streams.storage.segment_names import LogPartition
from streams.storage.segments import Segments

_log = logging.getLogger(__name__)

CACHED_IMPRESSIONS = 200_000  # kept in memory; others are read from disk when needed
# Those without an action for one to two of these are not kept: memory follows the rate of
# impressions, not their number. Most actions follow within seconds.
IDLE_S = 180.0


def segments_of(directory: Path, *, sync: bool = False) -> Segments:
    """The files of a `FeedbackStore`: rows of `task_columns().schema`, by the hour of serving."""
    distinct = ("impression_id", "request_id")
    return Segments(
        directory, task_columns().schema, times=("served_at_ms",), distinct=distinct, sync=sync
    )


class FeedbackStore:
    """Joins deliveries of EVENTS_BY_USER into feedback. `join` is a `BatchHandler`.

    A token is valid for its user only and a user has one partition, so partitions share no
    impression. They may therefore be in different processes and move between them: a store
    notices what another process has written and reads it back.
    """

    def __init__(
        self,
        directory: Path,
        *,
        key: bytes,
        windows_ms: Mapping[str, int],
        producer: Producer | None = None,
        on_rejected: Callable[[Counter[TokenRejection]], None] = lambda _: None,
        sync: bool = False,
        cached_impressions: int = CACHED_IMPRESSIONS,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`key` signed the impressions. `producer` publishes upserts to the topic `feedback`.

        `windows_ms`: by task; those of declared signals come from their declarations.
        """
        self._windows = AttributionWindows(contract().signals.windows_ms | dict(windows_ms))
        across = {name: self._windows.of(name) for name in contract().across_items}
        self._join = FeedbackJoin(key, across_items_ms=across)
        self.segments = segments_of(directory, sync=sync)
        self._producer = producer
        self._on_rejected = on_rejected
        self._cache_size = cached_impressions
        self._cache: dict[str, ImpressionState] = {}
        self._monotonic_s = monotonic_s
        self._active: set[str] = set()  # impressions that changed since `_active_since_s`
        self._active_since_s = monotonic_s()
        # Impressions served up to this may be missing in the cache; None: it holds all on disk.
        self._evicted_to_ms: int | None = None
        # The last offsets that the cache includes; None: read it back.
        self._cached_offsets: dict[LogPartition, int] | None = None
        self._lock = threading.Lock()

    def join(self, delivery: Delivery) -> None:
        """Publishes and stores what the batch changes.

        Publishes first, so that a crash in between repeats a revision and never loses one. Each
        message of a combined delivery makes its own revisions, which therefore do not depend on
        how messages are combined. Raises what the producer or the disk raises, and then the
        state is unchanged.
        """
        joined = self._join.join_batch(delivery.table)
        with self._lock:
            if joined.impressions:
                self._apply(delivery, joined)
        if joined.rejected:
            self._on_rejected(joined.rejected)

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's rows served up to `at_ms`, also from later deliveries."""
        with self._lock:
            removed = self.segments.erase(user_id, at_ms)
            self._cached_offsets = None
            self._cache.clear()
            return removed

    def _apply(self, delivery: Delivery, joined: JoinedBatch) -> None:
        last = delivery.stamp
        partition = LogPartition(last.topic_id, last.partition)
        stored = self.segments.last_offset(*partition)
        if self._cached_offsets is None or self._cached_offsets.get(partition, -1) != stored:
            self._read_all()
        columns = self._columns_of(joined.impressions)
        changes = _revisions_after(stored, delivery, joined, columns)
        table = self.segments.without_erased(changes.feedback_rows(self._windows))
        if table.num_rows:
            self._publish(table)
            self.segments.append(last, table)
            self._cached_offsets = {**(self._cached_offsets or {}), partition: last.offset}
            kept = set(table["impression_id"].to_pylist())
            changed = {state.impression_id: state for state in changes.to_states()}
            self._cache |= {key: state for key, state in changed.items() if key in kept}
            self._active |= kept
            self._evict()

    def _publish(self, table: pa.Table) -> None:
        if self._producer is not None:
            self._producer.send(_upserts(table))

    def _read_all(self) -> None:
        """Reads every impression back, then keeps as many as the cache holds."""
        self._cached_offsets = self.segments.last_offsets()
        rows = self.segments.read_consistently(lambda scan: _latest(scan).collect())
        self._cache = _states_by_id(rows)
        self._evicted_to_ms = None
        self._evict()
        _log.info("feedback: %d impressions read back", rows.height)

    def _columns_of(self, impressions: Mapping[str, Impression]) -> ImpressionColumns:
        """The states of the impressions, in their order."""
        self._read_evicted(impressions)
        return ImpressionColumns.from_states(
            [
                self._cache.get(i) or ImpressionState.empty(i, each)
                for i, each in impressions.items()
            ]
        )

    def _read_evicted(self, impressions: Mapping[str, Impression]) -> None:
        """Reads evicted impressions back; those served after `_evicted_to_ms` are all cached."""
        if self._evicted_to_ms is None:
            return
        missing = {
            impression_id: impression.served_at_ms
            for impression_id, impression in impressions.items()
            if impression_id not in self._cache and impression.served_at_ms <= self._evicted_to_ms
        }
        if missing:
            # The times let whole files and row groups be skipped.
            first_ms, last_ms = min(missing.values()), max(missing.values())
            wanted = pl.col("served_at_ms").is_between(first_ms, last_ms)
            wanted &= pl.col("impression_id").is_in(list(missing))
            rows = self.segments.read_consistently(
                lambda scan: _latest(scan.filter(wanted)).collect(), first_ms
            )
            self._cache |= _states_by_id(rows)

    def _evict(self) -> None:
        """Drops idle impressions; above twice the cache size, keeps those that were served last."""
        if self._monotonic_s() - self._active_since_s >= IDLE_S:
            self._drop_idle()
        if len(self._cache) <= 2 * self._cache_size:
            return
        by_age = sorted(self._cache.items(), key=lambda item: item[1].impression.served_at_ms)
        _, newest_evicted = by_age[-self._cache_size - 1]
        served_at_ms = newest_evicted.impression.served_at_ms
        self._evicted_to_ms = max(served_at_ms, self._evicted_to_ms or 0)
        self._cache = dict(by_age[-self._cache_size :])

    def _drop_idle(self) -> None:
        """Keeps the impressions that changed since the last call."""
        idle = [state for key, state in self._cache.items() if key not in self._active]
        if idle:
            newest_ms = max(state.impression.served_at_ms for state in idle)
            self._evicted_to_ms = max(newest_ms, self._evicted_to_ms or 0)
            self._cache = {key: s for key, s in self._cache.items() if key in self._active}
        self._active, self._active_since_s = set(), self._monotonic_s()


def _revisions_after(
    stored: int, delivery: Delivery, joined: JoinedBatch, columns: ImpressionColumns
) -> ImpressionColumns:
    """Every new revision, message by message. Messages up to the offset `stored` are applied."""
    revisions, end = [], 0
    for message in delivery.messages:
        first, end = end, end + message.table.num_rows
        if message.stamp.offset > stored:
            changed = columns.merge(joined.actions.in_rows(first, end))
            revisions.append(columns.take(changed))
    return ImpressionColumns.concat(revisions)


def _states_by_id(rows: pl.DataFrame) -> dict[str, ImpressionState]:
    return {
        row["impression_id"]: ImpressionState.from_row(row) for row in rows.iter_rows(named=True)
    }


def _upserts(table: pa.Table) -> list[Outgoing]:
    """One JSON object per row."""
    written = BytesIO()
    pl.DataFrame(table).write_ndjson(written)
    lines = written.getvalue().splitlines()
    keys = table["impression_id"].to_pylist()
    return [Outgoing(FEEDBACK, line, key.encode()) for key, line in zip(keys, lines, strict=True)]


def _latest(scan: pl.LazyFrame) -> pl.LazyFrame:
    newest = pl.col("revision") == pl.col("revision").max().over("impression_id")
    return scan.filter(newest).unique("impression_id")


def read_feedback(directory: Path) -> pl.DataFrame:
    """Every impression's last revision (`task_columns().schema`), by (served_at_ms, impression_id)."""
    rows = segments_of(directory).read_consistently(lambda scan: _latest(scan).collect())
    tasks = task_columns()
    rows = rows.with_columns(pl.col(task).fill_null(False) for task in tasks.declared)
    return rows.select(tasks.schema.names).sort("served_at_ms", "impression_id")


def read_served(directory: Path, wanted: pl.Expr, since_ms: int) -> pl.DataFrame:
    """The last revision of the impressions served since `since_ms` that fit `wanted`.

    `wanted` may use what the token states only, which is the same in every revision.
    """
    wanted &= pl.col("served_at_ms") >= since_ms
    rows = segments_of(directory).read_consistently(
        lambda scan: _latest(scan.filter(wanted)).collect(), since_ms
    )
    tasks = task_columns()
    rows = rows.with_columns(pl.col(task).fill_null(False) for task in tasks.declared)
    return rows.select(tasks.schema.names)


def read_matured(directory: Path, since_ms: int, until_ms: int) -> pl.DataFrame:
    """Impressions whose longest window closed in `(since_ms, until_ms]`, last revision each.

    Consecutive calls with a watermark as `since_ms` give every matured impression once.
    Ordered by (matured_at_ms, impression_id); `task_columns().schema`'s columns.
    """
    matured = (pl.col("matured_at_ms") > since_ms) & (pl.col("matured_at_ms") <= until_ms)
    rows = read_feedback(directory).filter(matured)
    return rows.sort("matured_at_ms", "impression_id")


def count_matured(directory: Path, since_ms: int, until_ms: int) -> int:
    """How many impressions matured in `(since_ms, until_ms]`, from the columns that say so."""
    matured = (pl.col("matured_at_ms") > since_ms) & (pl.col("matured_at_ms") <= until_ms)
    ids = pl.col("impression_id").n_unique()
    count = segments_of(directory).read_consistently(
        lambda scan: scan.filter(matured).select(ids).collect().item()
    )
    return int(count)
