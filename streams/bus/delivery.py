"""A delivery: one message of an internal topic, decoded once and passed to a `BatchHandler`.

Knows the batch, its position, its traces, and how queued deliveries are combined. Does not know
who delivers it (`streams.workers.worker` live, `EventLog.deliveries` from the files) nor what a
handler does with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
import pyarrow as pa

from streams.bus.contract import Stamp
from streams.contract.trace_headers import TRACES_HEADER, parse_traces

MESSAGE_OFFSET = "message_offset"
"""int64 column of a combined delivery: the offset of each row's message."""
MESSAGE_PARTITION = "message_partition"
"""int64 column of a delivery of several partitions: each row's partition."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch of admitted events with its position.

    `table` has `streams.contract.schema.EVENT_SCHEMA`, or the columns that the handler asked
    for. `headers` are the message's own (`traceparents` among them). `payload` holds the
    Arrow-IPC bytes that `table` was decoded from, where available, to avoid encoding it again.

    A combined delivery (`combine`) holds several messages: `stamp` is the last one's, `parts`
    are the single messages, and `table` has the extra column MESSAGE_OFFSET (with several
    partitions, MESSAGE_PARTITION too).
    """

    topic: str
    stamp: Stamp
    table: pa.Table
    headers: Mapping[str, bytes] = field(default_factory=dict)
    payload: bytes | None = None
    parts: Sequence[Delivery] = ()

    @property
    def messages(self) -> Sequence[Delivery]:
        """One delivery per message, each partition's in offset order."""
        return self.parts or (self,)


BatchHandler = Callable[[Delivery], None]
"""Returns when the batch's effect is durable; raises to have it delivered again.

Must be idempotent per stamp: delivery is at least once. A partition's deliveries come one
after another, in offset order, from one thread.

A handler of combined deliveries must recognise repeats by row (MESSAGE_OFFSET, and
MESSAGE_PARTITION with several partitions) or by message: after a restart the same messages may
be combined differently.
"""


def in_order(*handlers: BatchHandler) -> BatchHandler:
    """One handler that runs several on each delivery; a retry runs all of them again."""

    def run_all(delivery: Delivery) -> None:
        for handle in handlers:
            handle(delivery)

    return run_all


def combine(deliveries: Sequence[Delivery]) -> Delivery:
    """One delivery with the last one's stamp. Each partition's must come in offset order."""
    last = deliveries[-1]
    if len(deliveries) == 1:
        return last
    counts = [delivery.table.num_rows for delivery in deliveries]
    positions = {MESSAGE_OFFSET: [d.stamp.offset for d in deliveries]}
    if len({d.stamp.partition for d in deliveries}) > 1:
        positions[MESSAGE_PARTITION] = [d.stamp.partition for d in deliveries]
    table = pa.concat_tables([delivery.table for delivery in deliveries])
    for name, values in positions.items():
        table = table.append_column(name, pa.array(np.repeat(np.array(values, np.int64), counts)))
    headers = _combined_headers(deliveries, counts)
    return Delivery(last.topic, last.stamp, table, headers, parts=tuple(deliveries))


def _combined_headers(deliveries: Sequence[Delivery], counts: Sequence[int]) -> dict[str, bytes]:
    """The traces with shifted row numbers. Other headers apply to one message only: dropped."""
    traces: list[tuple[int, str]] = []
    begin = 0
    for delivery, count in zip(deliveries, counts, strict=True):
        for row, trace in parse_traces(delivery.headers.get(TRACES_HEADER)):
            traces.append((begin + row, trace))
        begin += count
    return {TRACES_HEADER: orjson.dumps(traces)} if traces else {}
