"""The event log: every admitted event once, in Parquet by hour, partition and offset range.

Knows the columns of an event and how they are read back. Does not know how files are stored
(`streams.storage.segments`), nor features or feedback. The log is the source of truth: online
values, feedback and training sets can be rebuilt from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from streams.bus.delivery import Delivery
from streams.contract.declaration import contract
from streams.contract.schema import event_schema
from streams.contract.topics import EVENTS_BY_USER
from streams.storage import compaction
from streams.storage.segments import LogBatch, Segments


class EventLog:
    """The log under one folder. `append` is a `BatchHandler`."""

    def __init__(self, directory: Path, *, sync: bool = False) -> None:
        """`sync=True` also survives a power failure, at one fsync per batch."""
        self.directory = directory
        times = ("ingested_at_ms", "event_time_ms")
        distinct = ("event_id", "request_id", "impression")
        self.segments = Segments(
            directory, event_schema(), times=times, distinct=distinct, sync=sync
        )

    def append(self, delivery: Delivery) -> None:
        """Makes the batch durable; a stamp that is already stored changes nothing.

        Each message of a combined delivery is a batch of its own.
        """
        batches = [LogBatch(each.stamp, each.table, each.payload) for each in delivery.messages]
        self.segments.extend(batches)

    def flush(self) -> None:
        """Seals every batch into Parquet now, for readers other than this class."""
        self.segments.flush()

    def scan(self, since_ms: int | None = None) -> pl.LazyFrame:
        """`event_schema`'s columns plus epoch (the topic id), partition, offset and row, with
        duplicates.

        With `since_ms`, hours whose events all happened and arrived before are skipped.
        Compaction may remove a file before `collect`: see `SegmentReader.scan`, or use `read`.
        """
        return self.segments.scan(since_ms)

    def read(
        self,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        kinds: Sequence[str] | None = None,
        duplicates: bool = False,
    ) -> pl.DataFrame:
        """Events with `since_ms <= event_time_ms < until_ms`, by (event_time_ms, event_id).

        `kind` is the signal's name (`streams.contract.signals`); `kinds` keeps only those named.
        Rows marked duplicate are left out unless `duplicates`. Hours before `since_ms` are not
        opened; of later ones, row groups whose events are all outside are skipped.
        """
        keep = pl.lit(True)
        if since_ms is not None:
            keep &= pl.col("event_time_ms") >= since_ms
        if until_ms is not None:
            keep &= pl.col("event_time_ms") < until_ms
        if kinds is not None:
            number = contract().signals.number
            keep &= pl.col("kind").is_in([number[kind] for kind in kinds])
        if not duplicates:
            keep &= ~pl.col("duplicate")
        rows = self.segments.read_consistently(lambda scan: scan.filter(keep).collect(), since_ms)
        return rows.with_columns(_kind_name()).sort("event_time_ms", "event_id")

    def events_of(self, column: str, ids: pl.Series, until_ms: int) -> pl.DataFrame:
        """Events that name one of these ids in `column` and arrived before `until_ms`, without
        duplicates; `kind` is a code. Of other events no more than a piece is in memory."""
        keep = pl.col(column).is_in(ids.implode()) & ~pl.col("duplicate")
        keep &= pl.col("ingested_at_ms") < until_ms
        return self.segments.read_consistently(lambda scan: scan.filter(keep).collect())

    def deliveries(self) -> Iterator[Delivery]:
        """The log as it was delivered: by topic id and partition, in offset order.

        Memory: one file. A batch whose rows were all erased is left out.
        """
        for stamp, table in self.segments.batches():
            yield Delivery(EVENTS_BY_USER, stamp, table)

    def pairs_of_other_topic_ids(self, topic_id: str, since_ms: int) -> pa.Table:
        """user_id, event_id and ingested_at_ms of events that arrived since `since_ms` under
        another topic id of EVENTS_BY_USER, without duplicates, by arrival."""
        columns = ["user_id", "event_id", "ingested_at_ms"]
        if all(known == topic_id for known, _ in self.segments.last_offsets()):
            return pa.schema([event_schema().field(name) for name in columns]).empty_table()
        wanted = (pl.col("epoch") != topic_id) & (pl.col("ingested_at_ms") >= since_ms)
        found = self.segments.read_consistently(
            lambda scan: scan.filter(wanted & ~pl.col("duplicate")).select(columns).collect(),
            since_ms,
        )
        return found.sort("ingested_at_ms").to_arrow()

    def last_offset(self, topic_id: str, partition: int) -> int:
        """The largest offset of EVENTS_BY_USER in the log, -1 for none."""
        return self.segments.last_offset(topic_id, partition)

    def begins_at_ms(self) -> int | None:
        """Retention may have dropped events before this; None: it dropped none."""
        return compaction.begins_at_ms(self.directory)

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's events that happened or were admitted up to `at_ms` from every file
        and from later appends. Returns the number of rows removed."""
        return self.segments.erase(user_id, at_ms)


def _kind_name() -> pl.Expr:
    """The column `kind` (uint8) as the kind's name."""
    names = dict(enumerate(contract().signals.name))
    return pl.col("kind").replace_strict(names, return_dtype=pl.String)
