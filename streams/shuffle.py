"""The shuffle: rows of one table to the partitions that own their entities, as messages.

Knows our hash, Arrow-IPC messages, their size and their headers. Does not know brokers.

Every message says up to which place of its source it goes (`UNTIL_HEADER`). A loop that was
killed between writing and committing reads those places back (`written_until`) and leaves
out the rows that are already there, so that it needs no transactions to write each row once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from streams.bus import Bus, Outgoing
from streams.schema import to_ipc

UNTIL_HEADER = "tidemill-until"  # JSON {"epoch": source's, "until": {partition: place}}
TRACES_HEADER = "traceparents"  # JSON [[row, traceparent], ...]
MAX_MESSAGE_BYTES = 900_000
_TAIL_MESSAGES = 512

Ints = npt.NDArray[np.int64]
Place = tuple[str, int, int]  # (target topic, target partition, source partition)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the N rows of a table lay: int64 arrays, places ascending within a partition."""

    epoch: str
    partitions: Ints
    places: Ints

    def take(self, rows: Ints) -> Source:
        return Source(self.epoch, self.partitions[rows], self.places[rows])


@dataclass(frozen=True, slots=True)
class Load:
    """A table on its way: its rows' source and the traces that pass through (row -> traceparent)."""

    table: pa.Table
    source: Source
    traces: Mapping[int, str] = field(default_factory=dict)

    def take(self, rows: Ints) -> Load:
        traces: dict[int, str] = {}
        if self.traces:
            at = {row: place for place, row in enumerate(rows.tolist())}
            traces = {at[row]: trace for row, trace in self.traces.items() if row in at}
        return Load(self.table.take(pa.array(rows)), self.source.take(rows), traces)

    def slice(self, start: int, stop: int) -> Load:
        source = self.source
        part = Source(source.epoch, source.partitions[start:stop], source.places[start:stop])
        inside = {r - start: t for r, t in self.traces.items() if start <= r < stop}
        return Load(self.table.slice(start, stop - start), part, inside)


def partitions_of(ids: pa.ChunkedArray | pa.Array, partitions: int) -> Ints:
    """`streams.topics.partition_of` of each id (no nulls), int64 [N]."""
    digest = xxhash.xxh3_64_intdigest
    hashes = np.array([digest(i) for i in pc.cast(ids, pa.binary()).to_pylist()], np.uint64)
    return (hashes % np.uint64(partitions)).astype(np.int64)


def shuffle(
    load: Load,
    key: str,
    topic: str,
    partitions: int,
    written: Mapping[Place, int] | None = None,
    headers: Mapping[str, bytes] | None = None,
) -> Iterator[Outgoing]:
    """Messages for `topic`, rows of one `key` in one partition and in their order.

    Rows whose `key` is null go nowhere; those at or before `written` are left out.
    """
    ids = load.table[key]
    if ids.null_count:
        load = load.take(np.flatnonzero(pc.is_valid(ids).to_numpy()))
    target = partitions_of(load.table[key], partitions)
    if written:
        fresh = np.flatnonzero(_unwritten(load.source, target, topic, written))
        load, target = load.take(fresh), target[fresh]
    order = np.argsort(target, kind="stable")
    ordered = load.take(order)
    cuts = np.searchsorted(target[order], np.arange(partitions + 1))
    for partition in range(partitions):
        if cuts[partition] < cuts[partition + 1]:
            part = ordered.slice(int(cuts[partition]), int(cuts[partition + 1]))
            yield from messages(part, topic, partition, headers or {})


def messages(
    load: Load,
    topic: str,
    partition: int,
    headers: Mapping[str, bytes],
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> Iterator[Outgoing]:
    """The rows as one message, or as halves of halves until each has at most `max_bytes`."""
    batch = load.table.combine_chunks().to_batches()[0]
    payload = to_ipc(batch)
    rows = load.table.num_rows
    if len(payload) > max_bytes and rows > 1:
        yield from messages(load.slice(0, rows // 2), topic, partition, headers, max_bytes)
        yield from messages(load.slice(rows // 2, rows), topic, partition, headers, max_bytes)
        return
    own = {UNTIL_HEADER: _until(load.source), **headers}
    if load.traces:
        own[TRACES_HEADER] = orjson.dumps(sorted(load.traces.items()))
    yield Outgoing(topic, payload, partition=partition, headers=own)


def written_until(bus: Bus, topics: Sequence[str], epoch: str) -> dict[Place, int]:
    """The last place of each source partition that lies in each partition of `topics`.

    Reads only the tails: what is older was committed. Marks of another epoch do not count.
    """
    found: dict[Place, int] = {}
    for topic in topics:
        for partition, (first, end) in bus.ends(topic).items():
            for record in bus.scan(topic, partition, max(first, end - _TAIL_MESSAGES), end):
                mark = orjson.loads(record.header(UNTIL_HEADER) or b"{}")
                if mark.get("epoch") != epoch:
                    continue
                for source, place in mark["until"].items():
                    at = (topic, partition, int(source))
                    found[at] = max(place, found.get(at, place))
    return found


class Written:
    """What of the input lies in `topics` already, looked up again whenever partitions move.

    With no topics (a transactional loop needs none) `places` stays empty.
    """

    def __init__(self, bus: Bus, topics: Sequence[str], epoch: str) -> None:
        self._bus, self._topics, self._epoch = bus, list(topics), epoch
        self._generation: int | None = None
        self.places: dict[Place, int] = {}

    def refresh(self, generation: int) -> None:
        if generation != self._generation:
            self.places = written_until(self._bus, self._topics, self._epoch)
            self._generation = generation


def _until(source: Source) -> bytes:
    origins = np.unique(source.partitions).tolist()
    last = {p: int(source.places[source.partitions == p].max()) for p in origins}
    return until_mark(source.epoch, last)


def until_mark(epoch: str, until: Mapping[int, int]) -> bytes:
    """The value of UNTIL_HEADER: the last place of each source partition in a message."""
    return orjson.dumps({"epoch": epoch, "until": {str(p): at for p, at in until.items()}})


def _unwritten(
    source: Source, target: Ints, topic: str, written: Mapping[Place, int]
) -> npt.NDArray[np.bool_]:
    fresh = np.ones(len(target), dtype=np.bool_)
    for (name, partition, origin), place in written.items():
        if name == topic:
            there = (target == partition) & (source.partitions == origin)
            fresh &= ~(there & (source.places <= place))
    return fresh
