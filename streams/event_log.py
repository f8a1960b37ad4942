"""The event log: every admitted event once, in Parquet by hour, partition and offset range.

Knows what an event's columns are and how they are read back. Does not know how files
are laid (`streams.storage.segments`), nor features or feedback. This log is the only truth:
online values, feedback and training sets can be made again from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from streams.bus.delivery import Delivery
from streams.contract.events import KINDS
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import EVENTS_BY_USER
from streams.storage import compaction as upkeep
from streams.storage.segments import Batch, Segments


class EventLog:
    """The log under one folder. `append` is a `BatchHandler`."""

    def __init__(self, directory: Path, *, sync: bool = False) -> None:
        """`sync=True` also survives a power failure, at one fsync per batch."""
        self.directory = directory
        times = ("ingested_at_ms", "event_time_ms")
        distinct = ("event_id", "request_id", "impression")
        self.segments = Segments(directory, EVENT_SCHEMA, times=times, distinct=distinct, sync=sync)

    def append(self, delivery: Delivery) -> None:
        """Makes the batch durable; a stamp that the log holds changes nothing.

        Of a combined delivery each message is a batch of its own.
        """
        batches = [Batch(each.stamp, each.table, each.payload) for each in delivery.messages]
        self.segments.extend(batches)

    def gather(self) -> None:
        """Files every batch as Parquet now, for readers other than this class."""
        self.segments.gather()

    def scan(self, since_ms: int | None = None) -> pl.LazyFrame:
        """EVENT_SCHEMA's columns plus epoch, partition, offset, row; duplicates marked.

        With `since_ms`, hours of which no event happened or arrived since are left out. See
        `Segments.scan` for what happens when files are merged meanwhile; `read` is free of that.
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

        `kind` is a string (`streams.contract.events.KINDS`); `kinds` keeps only those named.
        Rows marked duplicate are left out unless `duplicates`. Hours before `since_ms` are
        not opened; of later ones the parts whose events all happened outside are passed over.
        """
        keep = pl.lit(True)
        if since_ms is not None:
            keep &= pl.col("event_time_ms") >= since_ms
        if until_ms is not None:
            keep &= pl.col("event_time_ms") < until_ms
        if kinds is not None:
            keep &= pl.col("kind").is_in([KINDS.index(kind) for kind in kinds])
        if not duplicates:
            keep &= ~pl.col("duplicate")
        rows = self.segments.consistently(lambda scan: scan.filter(keep).collect(), since_ms)
        return rows.with_columns(kind_name()).sort("event_time_ms", "event_id")

    def deliveries(self) -> Iterator[Delivery]:
        """The log as it was delivered: by epoch and partition, in offset order.

        Memory: one file at a time. A batch whose rows were all erased is left out.
        """
        for stamp, table in self.segments.batches():
            yield Delivery(EVENTS_BY_USER, stamp, table)

    def pairs_of_other_epochs(self, epoch: str, since_ms: int) -> pa.Table:
        """user_id, event_id and ingested_at_ms of the events that count and that `epoch` of
        EVENTS_BY_USER does not hold, of those that arrived since; by arrival."""
        columns = ["user_id", "event_id", "ingested_at_ms"]
        if all(known == epoch for known, _ in self.segments.last_offsets()):
            return pa.schema([EVENT_SCHEMA.field(name) for name in columns]).empty_table()
        wanted = (pl.col("epoch") != epoch) & (pl.col("ingested_at_ms") >= since_ms)
        found = self.segments.consistently(
            lambda scan: scan.filter(wanted & ~pl.col("duplicate")).select(columns).collect(),
            since_ms,
        )
        return found.sort("ingested_at_ms").to_arrow()

    def last_offset(self, epoch: str, partition: int) -> int:
        """The largest offset of EVENTS_BY_USER that the log holds, -1 for none."""
        return self.segments.last_offset(epoch, partition)

    def begins_at_ms(self) -> int | None:
        """What happened before this may have been dropped by retention; None: nothing was."""
        return upkeep.begins_at_ms(self.directory)

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's events that happened or were admitted until `at_ms`, in every
        file and whenever they come again. Returns the number of rows removed."""
        return self.segments.erase(user_id, at_ms)


def kind_name() -> pl.Expr:
    """The column `kind` (uint8) as the kind's name."""
    return pl.col("kind").replace_strict(dict(enumerate(KINDS)), return_dtype=pl.String)
