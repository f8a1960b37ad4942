"""The sequencer, for several batchers: `events.admitted` in, `events.by_user` out.

Knows the admitted messages and their rows. Does not validate (`streams.ingest.service`),
remember events (`streams.ingest.deduplication`) or write other entities' topics
(`streams.ingest.fanout`). Duplicates are written too, marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from streams.bus.consume import Input
from streams.bus.contract import Bus, Outgoing
from streams.bus.polled import Record
from streams.codec.batches import read_batch
from streams.contract.clock import Clock
from streams.contract.schema import event_schema, from_ipc
from streams.contract.topics import ADMITTED, EVENTS_BY_USER
from streams.contract.trace_headers import TRACES_HEADER, parse_traces
from streams.event_log import EventLog
from streams.ingest.deduplication import SeenEvents
from streams.ingest.loop import IngestConfig, IngestLoop
from streams.ingest.partitioning import SourcedRows, SourcePositions, partition_rows

ROW_BITS = 20  # a row's position is (offset of its message << 20) | row within the message
_MIN_POLL_INTERVAL_S, _LINGER_S = 0.02, 0.004


class Sequencer(IngestLoop):
    """Marks duplicates among the admitted events and partitions them by user."""

    def __init__(
        self, bus: Bus, clock: Clock, config: IngestConfig, log: EventLog | None = None
    ) -> None:
        """`log`: see `SeenEvents`."""
        self._clock = clock
        open_input = partial(
            Input, bus, ADMITTED, min_poll_interval_s=_MIN_POLL_INTERVAL_S, linger_s=_LINGER_S
        )
        super().__init__(bus, config, "sequencer", open_input, [EVENTS_BY_USER], ROW_BITS)
        self._partitions = bus.partitions(EVENTS_BY_USER)
        self._seen = SeenEvents(bus, config.limits, log)

    def is_past(self, offsets: Mapping[int, int]) -> bool:
        """Whether this loop owns all these partitions, and their commits are past `offsets`."""
        committed = self._input.consumer.committed()
        return all(committed.get((ADMITTED, p), -1) > offset for p, offset in offsets.items())

    def _on_poll(self) -> None:
        self._seen.on_assignment(self._input.assignment_version)
        super()._on_poll()

    def _process(self, records: Sequence[Record]) -> list[Outgoing]:
        admitted = read_admitted(records, self._input.topic_id)
        written = self._recovery.written
        rows = partition_rows(admitted, "user_id", EVENTS_BY_USER, self._partitions, written)
        return self._seen.mark_duplicates(rows, self._clock.now_ms())


def read_admitted(
    records: Sequence[Record], topic_id: str, read: Callable[[bytes], pa.Table] = from_ipc
) -> SourcedRows:
    """Admitted messages as one table with each row's message and trace.

    Ordered by partition, so that partitioning by user need not move rows again. A message that
    no writer of ours wrote has no rows.
    """
    records = sorted(records, key=lambda record: record.partition)
    found = [read_batch(record, read) for record in records]
    empty = getattr(read, "schema", event_schema()).empty_table()
    tables = [empty if table is None else table for table in found]
    counts = np.array([table.num_rows for table in tables], dtype=np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    offsets = np.array([record.offset for record in records], dtype=np.int64)
    rows = np.arange(counts.sum()) - np.repeat(begins, counts)
    partitions = np.repeat(np.array([r.partition for r in records], dtype=np.int64), counts)
    traces: dict[int, str] = {}
    for record, begin in zip(records, begins.tolist(), strict=True):
        for row, trace in parse_traces(record.header(TRACES_HEADER)):
            traces[begin + row] = trace
    positions = (np.repeat(offsets, counts) << ROW_BITS) | rows
    source = SourcePositions(topic_id, partitions, positions)
    return SourcedRows(pa.concat_tables(tables), source, traces)
