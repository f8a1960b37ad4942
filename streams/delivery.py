"""A delivery: one message of an internal topic, decoded once and handed to a `BatchHandler`.

Knows the batch, where it lies and which traces run through it. Does not know who
delivers it (`streams.worker` live, `EventLog.deliveries` from the files) nor what is
done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from streams.bus import Stamp


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch of admitted events in its place.

    `table` has `streams.schema.EVENT_SCHEMA`. `headers` are the message's own
    (`traceparents` among them). `payload` holds the Arrow-IPC bytes that `table` was
    decoded from, where they are at hand, so that nobody encodes them again.
    """

    topic: str
    stamp: Stamp
    table: pa.Table
    headers: Mapping[str, bytes] = field(default_factory=dict)
    payload: bytes | None = None


BatchHandler = Callable[[Delivery], None]
"""Returns when the batch's effect is durable; raises to have it delivered again.

Must change nothing the second time it sees a stamp: delivery is at least once. A
partition's deliveries come one after another, in offset order, from one thread.
"""


def in_order(*handlers: BatchHandler) -> BatchHandler:
    """One handler that runs several on the same delivery; a retry runs all of them again."""

    def run_all(delivery: Delivery) -> None:
        for handle in handlers:
            handle(delivery)

    return run_all
