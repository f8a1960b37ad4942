"""Deduplication: which events of the users' partitions were seen within the horizon.

Knows (user, event id) pairs, their horizon, signals that a user states of an item only once
within it (`streams.ingest.caps`) and `events.by_user`. Does not know who writes to it:
a sole batcher (`streams.ingest.service`) or the sequencer (`streams.ingest.sequencer`).

The memory is a cache of `events.by_user`: after an assignment, a partition's horizon is read
back first. Events from before the topic was recreated are read from the log.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.contract import Bus, Outgoing
from streams.bus.polled import Record
from streams.codec.batches import read_batch
from streams.contract.schema import BatchReader, event_columns
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.ingest.admission import AdmissionLimits
from streams.ingest.caps import ActionRate, item_keys, rows_of_kinds
from streams.ingest.partitioning import Ints, PartitionedRows
from streams.kernels.recent_keys import RecentKeys
from streams.metrics import EVENTS_CAPPED

SEQUENCED_HEADER = "tidemill-sequenced-at-ms"
_SEED = secrets.randbits(63)  # so that no event can be made to collide with another
_MAX_DIGITS = 15  # of a time in ms
_LOG = logging.getLogger(__name__)


class SeenEvents:
    """What was sequenced within the horizon, by partition of `events.by_user`."""

    def __init__(self, bus: Bus, limits: AdmissionLimits, log: EventLog | None = None) -> None:
        """`log`: used to detect duplicates of events published before the topic was recreated."""
        self._bus, self._horizon_ms, self._log = bus, limits.duplicate_horizon_ms, log
        self._idempotent = limits.idempotent
        most = limits.actions_a_minute
        self._rate = None if most is None else ActionRate(most)
        self._memory: dict[int, RecentKeys] = {}
        self._earlier: RecentKeys | None = None  # of all partitions, from before a recreation
        self._earlier_until_ms = 0  # then all of them are past the horizon
        self._assignment_version = -1

    def on_assignment(self, version: int) -> None:
        """After a rebalance, drops the memory: another process may have sequenced meanwhile."""
        if self._assignment_version != version:
            self._memory.clear()
            self._assignment_version = version

    def mark_duplicates(self, partitioned: PartitionedRows, now_ms: int) -> list[Outgoing]:
        """The messages for `events.by_user`, each row marked as a duplicate or not.

        `partitioned`: rows of EVENT_SCHEMA for that topic. They are remembered.
        """
        table = partitioned.rows.table
        seen = self._see(pair_keys(table), partitioned.target, now_ms)
        duplicate = pa.array(self.cap(table, seen, partitioned.target, now_ms))
        at = table.schema.get_field_index("duplicate")
        table = table.set_column(at, table.schema.field(at), duplicate)
        marked = replace(partitioned, rows=replace(partitioned.rows, table=table))
        return list(marked.messages({SEQUENCED_HEADER: str(now_ms).encode()}))

    def cap(
        self, table: pa.Table, seen: npt.NDArray[np.bool_], partitions: Ints, now_ms: int
    ) -> npt.NDArray[np.bool_]:
        """bool [N]: `seen`, and what exceeds a user's caps, which is counted by cause."""
        capped = seen.copy()
        if self._idempotent:
            rows = rows_of_kinds(table, self._idempotent)
            rows = rows[~seen[rows]]
            repeated = self._see(item_keys(table, rows, _SEED), partitions[rows], now_ms)
            capped[rows[repeated]] = True
            EVENTS_CAPPED.labels("repeated").inc(int(repeated.sum()))
        if self._rate is not None:
            beyond = self._rate.excess(table, ~capped)
            capped[beyond] = True
            EVENTS_CAPPED.labels("inhuman_rate").inc(len(beyond))
        return capped

    def _see(
        self, keys: npt.NDArray[np.uint64], partitions: Ints, now_ms: int
    ) -> npt.NDArray[np.bool_]:
        """bool [N]: which keys were seen in their partition (ascending). Remembers all."""
        self._read_log_once(now_ms)
        if self._earlier is None or now_ms > self._earlier_until_ms:
            self._earlier = None  # else every key would be kept twice for good
            return self._see_in_topic(keys, partitions, now_ms)
        duplicate = self._earlier.see(keys, now_ms)
        new = np.flatnonzero(~duplicate)  # a duplicate does not extend its key's horizon
        duplicate[new] = self._see_in_topic(keys[new], partitions[new], now_ms)
        return duplicate

    def _see_in_topic(
        self, keys: npt.NDArray[np.uint64], partitions: Ints, now_ms: int
    ) -> npt.NDArray[np.bool_]:
        duplicate = np.empty(len(keys), dtype=np.bool_)
        touched = np.flatnonzero(np.bincount(partitions)).tolist()
        self._load_partitions(touched)
        for partition in touched:
            begin, end = np.searchsorted(partitions, [partition, partition + 1])
            duplicate[begin:end] = self._memory[partition].see(keys[begin:end], now_ms)
        return duplicate

    def _read_log_once(self, now_ms: int) -> None:
        """Reads the log's horizon for events from before the topic was recreated."""
        if self._log is None:
            return
        log, self._log = self._log, None
        since_ms = now_ms - self._horizon_ms
        pairs = log.pairs_of_other_topic_ids(self._bus.topic_id(EVENTS_BY_USER), since_ms)
        if pairs.num_rows:
            self._earlier = _keys_of(pairs, self._horizon_ms)
            self._earlier_until_ms = pairs["ingested_at_ms"][-1].as_py() + self._horizon_ms
            _LOG.info("remembered %d events of recreated topics from the log", pairs.num_rows)

    def _load_partitions(self, partitions: list[int]) -> None:
        """Reads partitions that are not in memory. No other process writes to them meanwhile."""
        if new := [p for p in partitions if p not in self._memory]:
            ends = self._bus.ends(EVENTS_BY_USER)
            for partition in new:
                self._memory[partition] = read_keys(
                    self._bus, partition, ends[partition], self._horizon_ms, self._idempotent
                )


def read_keys(
    bus: Bus,
    partition: int,
    ends: tuple[int, int],
    horizon_ms: int,
    idempotent: Sequence[str] = (),
) -> RecentKeys:
    """The keys within the horizon, read from a partition of `events.by_user` up to its end."""
    memory = RecentKeys(horizon_ms)
    named = ("kind", "video_id") if idempotent else ()
    read = BatchReader(event_columns("user_id", "event_id", "duplicate", *named))
    first, end = ends
    if first == end:
        return memory
    # The last offsets may be transaction markers, which are not records.
    last = bus.scan(EVENTS_BY_USER, partition, max(first, end - 64), end)
    newest = max((_sequenced_at(record) for record in last), default=0)
    start = _first_since(bus, partition, newest - horizon_ms, first, end)
    for record in bus.scan(EVENTS_BY_USER, partition, start, end):
        if (table := read_batch(record, read)) is not None:
            unique = table.filter(pc.invert(table["duplicate"]))
            memory.see(pair_keys(unique), _sequenced_at(record))
            if idempotent:
                rows = rows_of_kinds(unique, idempotent)
                memory.see(item_keys(unique, rows, _SEED), _sequenced_at(record))
    _LOG.info("partition %d: remembered %d events", partition, len(memory))
    return memory


def _keys_of(pairs: pa.Table, horizon_ms: int) -> RecentKeys:
    """`pairs`: user_id, event_id and ingested_at_ms, ordered by the last."""
    memory, keys = RecentKeys(horizon_ms), pair_keys(pairs)
    at_ms, first = np.unique(pairs["ingested_at_ms"].to_numpy(), return_index=True)
    for begin, end, at in zip(first, [*first[1:], len(keys)], at_ms.tolist(), strict=True):
        memory.see(keys[begin:end], at)
    return memory


def _first_since(bus: Bus, partition: int, at_ms: int, first: int, end: int) -> int:
    """An offset before which all messages were sequenced before `at_ms`, by bisection."""
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
    """0 if the header is missing, null or malformed."""
    stated = record.header(SEQUENCED_HEADER) or b"0"
    return int(stated) if stated.isdigit() and len(stated) <= _MAX_DIGITS else 0


def pair_keys(table: pa.Table) -> npt.NDArray[np.uint64]:
    """uint64 [N]: one key per (user_id, event_id). The seed is this process's: never store it."""
    pairs = pl.DataFrame(table.select(["user_id", "event_id"]))
    return pairs.hash_rows(seed=_SEED).to_numpy()
