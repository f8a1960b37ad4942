"""Which events were seen before: the memory of the users' partitions, and where it comes from.

Knows (user, event id) pairs, their horizon and `events.by_user`. Does not know who writes
there: the door's one loop (`streams.ingest.service`) or the second of its two (`streams.ingest.sequencer`).

The memory is a cache of `events.by_user`: whoever is given a partition reads the horizon's
tail of it first. A topic that began again has forgotten what came before: that is in the log.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.contract import Bus, Outgoing, Record
from streams.contract.schema import BatchReader, columns
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog
from streams.ingest.partitioning import Ints, Placed
from streams.kernels.recent_keys import RecentKeys

SEQUENCED_HEADER = "tidemill-sequenced-at-ms"
_SEED = secrets.randbits(63)  # nobody can make an event that counts as another's copy
_LOG = logging.getLogger(__name__)


class SeenEvents:
    """What was sequenced within the horizon, by partition of `events.by_user`."""

    def __init__(self, bus: Bus, horizon_ms: int, log: EventLog | None = None) -> None:
        """`log`: where the events of earlier epochs lie; without one their copies are unknown."""
        self._bus, self._horizon_ms, self._log = bus, horizon_ms, log
        self._memory: dict[int, RecentKeys] = {}
        self._earlier: RecentKeys | None = None  # of all partitions, by other epochs
        self._earlier_until_ms = 0  # then the horizon has passed all of them
        self._generation = -1

    def follow(self, generation: int) -> None:
        """Partitions changed hands: what another process sequenced meanwhile must be known."""
        if self._generation != generation:
            self._memory.clear()
            self._generation = generation

    def sequenced(self, placed: Placed, now_ms: int) -> list[Outgoing]:
        """The messages for `events.by_user`, in which each row says whether it is a duplicate.

        `placed`: rows of EVENT_SCHEMA on their way there; from now on they are remembered.
        """
        table = placed.load.table
        duplicate = pa.array(self._see(pair_keys(table), placed.target, now_ms))
        at = table.schema.get_field_index("duplicate")
        table = table.set_column(at, table.schema.field(at), duplicate)
        marked = replace(placed, load=replace(placed.load, table=table))
        return list(marked.messages({SEQUENCED_HEADER: str(now_ms).encode()}))

    def _see(
        self, keys: npt.NDArray[np.uint64], partitions: Ints, now_ms: int
    ) -> npt.NDArray[np.bool_]:
        """bool [N]: which keys their partition (ascending) has seen, in this epoch or before."""
        self._recall(now_ms)
        if self._earlier is None or now_ms > self._earlier_until_ms:
            self._earlier = None  # else every key would be kept twice for good
            return self._see_here(keys, partitions, now_ms)
        duplicate = self._earlier.see(keys, now_ms)
        new = np.flatnonzero(~duplicate)  # a copy does not prolong the memory of its key
        duplicate[new] = self._see_here(keys[new], partitions[new], now_ms)
        return duplicate

    def _see_here(
        self, keys: npt.NDArray[np.uint64], partitions: Ints, now_ms: int
    ) -> npt.NDArray[np.bool_]:
        duplicate = np.empty(len(keys), dtype=np.bool_)
        touched = np.flatnonzero(np.bincount(partitions)).tolist()
        self._remember(touched)
        for partition in touched:
            begin, end = np.searchsorted(partitions, [partition, partition + 1])
            duplicate[begin:end] = self._memory[partition].see(keys[begin:end], now_ms)
        return duplicate

    def _recall(self, now_ms: int) -> None:
        """Reads the log's horizon once, for events of other epochs."""
        if self._log is None:
            return
        log, self._log = self._log, None
        since_ms = now_ms - self._horizon_ms
        pairs = log.pairs_of_other_epochs(self._bus.epoch(EVENTS_BY_USER), since_ms)
        if pairs.num_rows:
            self._earlier = _remembered(pairs, self._horizon_ms)
            self._earlier_until_ms = pairs["ingested_at_ms"][-1].as_py() + self._horizon_ms
            _LOG.info("remembered %d events of earlier epochs from the log", pairs.num_rows)

    def _remember(self, partitions: list[int]) -> None:
        """Reads what is not known yet; nobody else writes to these partitions meanwhile."""
        if new := [p for p in partitions if p not in self._memory]:
            ends = self._bus.ends(EVENTS_BY_USER)
            for partition in new:
                memory = rebuild(self._bus, partition, ends[partition], self._horizon_ms)
                self._memory[partition] = memory


def rebuild(bus: Bus, partition: int, ends: tuple[int, int], horizon_ms: int) -> RecentKeys:
    """The memory of one partition as `events.by_user` tells it between its `ends`."""
    memory, read = RecentKeys(horizon_ms), BatchReader(columns("user_id", "event_id", "duplicate"))
    first, end = ends
    if first == end:
        return memory
    # The last offsets may be a transaction's markers, which are no records.
    tail = bus.scan(EVENTS_BY_USER, partition, max(first, end - 64), end)
    newest = max((_sequenced_at(record) for record in tail), default=0)
    start = _first_since(bus, partition, newest - horizon_ms, first, end)
    for record in bus.scan(EVENTS_BY_USER, partition, start, end):
        table = read(record.value or b"")
        once = table.filter(pc.invert(table["duplicate"]))
        memory.see(pair_keys(once), _sequenced_at(record))
    _LOG.info("partition %d: remembered %d events", partition, len(memory))
    return memory


def _remembered(pairs: pa.Table, horizon_ms: int) -> RecentKeys:
    """`pairs`: user_id, event_id and ingested_at_ms, by the latter."""
    memory, keys = RecentKeys(horizon_ms), pair_keys(pairs)
    at_ms, first = np.unique(pairs["ingested_at_ms"].to_numpy(), return_index=True)
    for begin, end, at in zip(first, [*first[1:], len(keys)], at_ms.tolist(), strict=True):
        memory.see(keys[begin:end], at)
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
    return pairs.hash_rows(seed=_SEED).to_numpy()
