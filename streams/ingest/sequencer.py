"""The second of the door's two loops, where doors are many: `events.admitted` in, the truth out.

Knows which rows it has been given. Does not validate (`streams.ingest.service`), nor know how
duplicates are remembered (`streams.ingest.deduplication`), nor send rows on to other entities
(`streams.ingest.fanout`). All rows go to `events.by_user` with their mark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import orjson
import pyarrow as pa

from streams.bus.consume import Input
from streams.bus.contract import Bus, Consumed, Outgoing, Record
from streams.contract.clock import Clock
from streams.contract.schema import from_ipc
from streams.contract.topics import ADMITTED, EVENTS_BY_USER
from streams.event_log import EventLog
from streams.ingest.admission import AdmissionLimits
from streams.ingest.deduplication import SeenEvents
from streams.ingest.partitioning import TRACES_HEADER, Load, Source, place
from streams.ingest.recovery import Recovery

ROW_BITS = 20  # a place is (offset of the admitted message << 20) | row within it
_PACE_S, _SETTLE_S = 0.02, 0.004


class Sequencer:
    """One consume-process-produce loop. Not thread-safe; `turn` is one round of it."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        limits: AdmissionLimits,
        transactional: bool = True,
        group: str = "tidemill",
        instance: str = "0",
        log: EventLog | None = None,
    ) -> None:
        """`log`: as of `SeenEvents`."""
        self._clock = clock
        name = f"{group}-sequencer-{instance}" if transactional else None
        self._producer = bus.producer(name)
        self._partitions = bus.partitions(EVENTS_BY_USER)
        self._input = Input(bus, ADMITTED, f"{group}-sequencer", _PACE_S, _SETTLE_S)
        self._recovery = Recovery(
            bus, self._input, self._producer, [EVENTS_BY_USER], self._sequenced, ROW_BITS
        )
        self._seen = SeenEvents(bus, limits.duplicate_horizon_ms, log)

    def turn(self, timeout_s: float) -> int:
        """Sequences what one poll brings; returns the number of messages it worked off."""
        records = self._input.poll(timeout_s)
        self._seen.follow(self._input.generation)
        self._recovery.refresh()
        if not records:
            return 0
        out = self._sequenced(records)
        self._producer.send(out, consumed=Consumed(self._input.consumer, records))
        return len(records)

    def _sequenced(self, records: Sequence[Record]) -> list[Outgoing]:
        load = read_load(records, self._input.epoch)
        topic, written = EVENTS_BY_USER, self._recovery.places
        placed = place(load, "user_id", topic, self._partitions, written)
        return self._seen.sequenced(placed, self._clock.now_ms())

    def has_sequenced(self, until: Mapping[int, int]) -> bool:
        """Whether the group is past these offsets (by partition) and this loop was given all."""
        done = self._input.consumer.committed()
        return all(done.get((ADMITTED, p), -1) > offset for p, offset in until.items())

    def close(self) -> None:
        self._input.consumer.close()
        self._producer.close()


def read_load(
    records: Sequence[Record], epoch: str, read: Callable[[bytes], pa.Table] = from_ipc
) -> Load:
    """Admitted messages as one table in which each row knows its message and its trace.

    By partition, so that rows by user need not be moved again.
    """
    records = sorted(records, key=lambda record: record.partition)
    tables = [read(record.value or b"") for record in records]
    counts = np.array([table.num_rows for table in tables], dtype=np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    offsets = np.array([record.offset for record in records], dtype=np.int64)
    rows = np.arange(counts.sum()) - np.repeat(begins, counts)
    partitions = np.repeat(np.array([r.partition for r in records], dtype=np.int64), counts)
    traces: dict[int, str] = {}
    for record, begin in zip(records, begins.tolist(), strict=True):
        for row, trace in orjson.loads(record.header(TRACES_HEADER) or b"[]"):
            traces[begin + row] = trace
    places = (np.repeat(offsets, counts) << ROW_BITS) | rows
    return Load(pa.concat_tables(tables), Source(epoch, partitions, places), traces)
