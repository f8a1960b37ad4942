"""A delivery: one message of an internal topic, decoded once and handed to a `BatchHandler`.

Knows the batch, where it lies, which traces run through it, and how deliveries that wait
in line become one. Does not know who delivers it (`streams.workers.worker` live,
`EventLog.deliveries` from the files) nor what is done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
import pyarrow as pa

from streams.bus.contract import Stamp
from streams.ingest.partitioning import TRACES_HEADER

MESSAGE_OFFSET = "message_offset"
"""int64 column of a combined delivery: the offset of the message that each row came in."""
MESSAGE_PARTITION = "message_partition"
"""int64 column of a delivery of several partitions: the one that each row came from."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch of admitted events in its place.

    `table` has `streams.contract.schema.EVENT_SCHEMA`, or those of its columns that the handler asked
    for. `headers` are the message's own
    (`traceparents` among them). `payload` holds the Arrow-IPC bytes that `table` was
    decoded from, where they are at hand, so that nobody encodes them again.

    A combined delivery (`combine`) holds several messages: `stamp` is the last one's,
    `table` has one column more, MESSAGE_OFFSET, and `parts` are the messages as they came.
    Where they are of several partitions, MESSAGE_PARTITION tells which.
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

Must change nothing the second time it sees a stamp: delivery is at least once. A
partition's deliveries come one after another, in offset order, from one thread.

One that is given combined deliveries must tell what it has seen row by row, by
MESSAGE_OFFSET (and MESSAGE_PARTITION, where it is given several partitions at once), or
message by message: after a restart the same messages come cut in other places.
"""


def in_order(*handlers: BatchHandler) -> BatchHandler:
    """One handler that runs several on the same delivery; a retry runs all of them again."""

    def run_all(delivery: Delivery) -> None:
        for handle in handlers:
            handle(delivery)

    return run_all


def combine(deliveries: Sequence[Delivery]) -> Delivery:
    """Deliveries, each partition's in offset order, as one that stands at the last one's stamp."""
    last = deliveries[-1]
    if len(deliveries) == 1:
        return last
    counts = [delivery.table.num_rows for delivery in deliveries]
    places = {MESSAGE_OFFSET: [d.stamp.offset for d in deliveries]}
    if len({d.stamp.partition for d in deliveries}) > 1:
        places[MESSAGE_PARTITION] = [d.stamp.partition for d in deliveries]
    table = pa.concat_tables([delivery.table for delivery in deliveries])
    for name, values in places.items():
        table = table.append_column(name, pa.array(np.repeat(np.array(values, np.int64), counts)))
    headers = _headers(deliveries, counts)
    return Delivery(last.topic, last.stamp, table, headers, parts=tuple(deliveries))


def _headers(deliveries: Sequence[Delivery], counts: Sequence[int]) -> dict[str, bytes]:
    """The traces, at the rows where they are now. Other headers speak of one message only."""
    traces: list[tuple[int, str]] = []
    begin = 0
    for delivery, count in zip(deliveries, counts, strict=True):
        for row, trace in orjson.loads(delivery.headers.get(TRACES_HEADER, b"[]")):
            traces.append((begin + row, trace))
        begin += count
    return {TRACES_HEADER: orjson.dumps(traces)} if traces else {}
