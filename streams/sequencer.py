"""Duplicates, decided once, in the user's order: `events.admitted` in, the truth out.

Knows (user, event id) pairs and their horizon. Does not validate (`streams.admission`),
nor send rows on to other entities (`streams.fanout`). All rows go to `events.by_user`
with their mark.

Its memory is a cache of `events.by_user`: whoever is given a partition reads the
horizon's tail of it first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa

from streams.admission import AdmissionLimits
from streams.bus import Bus, Consumed, Record
from streams.clock import Clock
from streams.loop import Input
from streams.recent_keys import RecentKeys
from streams.schema import from_ipc
from streams.shuffle import TRACES_HEADER, Load, Source, Written, shuffle
from streams.topics import ADMITTED, EVENTS_BY_USER

SEQUENCED_HEADER = "tidemill-sequenced-at-ms"
_ROW_BITS = 20  # a place is (offset of the admitted message << 20) | row within it
_PACE_S, _SETTLE_S = 0.02, 0.004
_LOG = logging.getLogger(__name__)


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
    ) -> None:
        self._bus, self._clock = bus, clock
        self._horizon_ms = limits.duplicate_horizon_ms
        name = f"{group}-sequencer-{instance}" if transactional else None
        self._producer = bus.producer(name)
        self._partitions = len(bus.ends(EVENTS_BY_USER))
        self._input = Input(bus, ADMITTED, f"{group}-sequencer", _PACE_S, _SETTLE_S)
        targets = [] if transactional else [EVENTS_BY_USER]
        self._written = Written(bus, targets, self._input.epoch)
        self._memory: dict[int, RecentKeys] = {}
        self._generation = -1

    def turn(self, timeout_s: float) -> int:
        """Sequences what one poll brings; returns the number of messages it worked off."""
        records = self._input.poll(timeout_s)
        if not records:
            return 0
        self._follow_assignment()
        now_ms = self._clock.now_ms()
        load = self._judge(self._fresh(read_load(records, self._input.epoch)), now_ms)
        headers = {SEQUENCED_HEADER: str(now_ms).encode()}
        out = list(shuffle(load, "user_id", EVENTS_BY_USER, self._partitions, headers=headers))
        self._producer.send(out, consumed=Consumed(self._input.consumer, records))
        return len(records)

    def close(self) -> None:
        self._input.consumer.close()
        self._producer.close()

    def _follow_assignment(self) -> None:
        """Partitions changed hands: what another member sequenced meanwhile must be known."""
        if self._generation != self._input.generation:
            self._memory.clear()
            self._generation = self._input.generation
        self._written.refresh(self._generation)

    def _fresh(self, load: Load) -> Load:
        """Without rows that a killed predecessor wrote to `events.by_user` but did not commit."""
        written = np.full(int(load.source.partitions.max(initial=0)) + 1, -1, dtype=np.int64)
        for (_, _, origin), place in self._written.places.items():
            if origin < len(written):
                written[origin] = max(written[origin], place)
        fresh = load.source.places > written[load.source.partitions]
        return load if fresh.all() else load.take(np.flatnonzero(fresh))

    def _judge(self, load: Load, now_ms: int) -> Load:
        duplicate = np.zeros(load.table.num_rows, dtype=np.bool_)
        keys = pair_keys(load.table)
        for partition in np.unique(load.source.partitions).tolist():
            rows = load.source.partitions == partition
            duplicate[rows] = self._memory_of(partition).see(keys[rows], now_ms)
        at = load.table.schema.get_field_index("duplicate")
        field = load.table.schema.field(at)
        table = load.table.set_column(at, field, pa.array(duplicate))
        return Load(table, load.source, load.traces)

    def _memory_of(self, partition: int) -> RecentKeys:
        if partition not in self._memory:
            self._memory[partition] = rebuild(self._bus, partition, self._horizon_ms)
        return self._memory[partition]


def rebuild(bus: Bus, partition: int, horizon_ms: int) -> RecentKeys:
    """The memory of one partition as `events.by_user` tells it."""
    memory = RecentKeys(horizon_ms)
    first, end = bus.ends(EVENTS_BY_USER)[partition]
    if first == end:
        return memory
    # The last offsets may be a transaction's markers, which are no records.
    tail = bus.scan(EVENTS_BY_USER, partition, max(first, end - 64), end)
    newest = max((_sequenced_at(record) for record in tail), default=0)
    start = _first_since(bus, partition, newest - horizon_ms, first, end)
    for record in bus.scan(EVENTS_BY_USER, partition, start, end):
        table = from_ipc(record.value or b"")
        once = table.filter(pa.compute.invert(table["duplicate"]))
        memory.see(pair_keys(once), _sequenced_at(record))
    _LOG.info("partition %d: remembered %d events", partition, len(memory))
    return memory


def _first_since(bus: Bus, partition: int, at_ms: int, first: int, end: int) -> int:
    """An offset before which every message was sequenced before `at_ms`, by bisection."""
    low, high = first, end
    while high - low > 64:
        middle = (low + high) // 2
        probe = next(iter(bus.scan(EVENTS_BY_USER, partition, middle, end)), None)
        if probe is not None and _sequenced_at(probe) < at_ms:
            low = middle
        else:
            high = middle
    return low


def _sequenced_at(record: Record) -> int:
    return int(record.header(SEQUENCED_HEADER) or 0)


def pair_keys(table: pa.Table) -> npt.NDArray[np.uint64]:
    """uint64 [N]: one key per (user_id, event_id). Never stored: only this process reads it."""
    pairs = pl.DataFrame(table.select(["user_id", "event_id"]))
    return pairs.hash_rows(seed=0).to_numpy()


def read_load(records: Sequence[Record], epoch: str) -> Load:
    """Admitted messages as one table in which each row knows its message and its trace.

    By partition, so that rows by user need not be moved again.
    """
    records = sorted(records, key=lambda record: record.partition)
    tables = [from_ipc(record.value or b"") for record in records]
    counts = np.array([table.num_rows for table in tables], dtype=np.int64)
    begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
    offsets = np.array([record.offset for record in records], dtype=np.int64)
    rows = np.arange(counts.sum()) - np.repeat(begins, counts)
    partitions = np.repeat(np.array([r.partition for r in records], dtype=np.int64), counts)
    traces: dict[int, str] = {}
    for record, begin in zip(records, begins.tolist(), strict=True):
        for row, trace in orjson.loads(record.header(TRACES_HEADER) or b"[]"):
            traces[begin + row] = trace
    places = (np.repeat(offsets, counts) << _ROW_BITS) | rows
    return Load(pa.concat_tables(tables), Source(epoch, partitions, places), traces)
