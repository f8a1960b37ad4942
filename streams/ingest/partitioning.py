"""The shuffle: rows of one table to the partitions that own their entities, as messages.

Knows our hash, Arrow-IPC messages, their size and their headers. Does not know brokers.

Every message says up to which place of its source it goes (`UNTIL_HEADER`). A loop whose
commit was lost reads those places back (`streams.ingest.recovery`) and leaves out the rows that
are already there, so that it needs no transactions to write each row once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.contract import Outgoing, Record, last_places
from streams.contract.schema import to_ipc

UNTIL_HEADER = "tidemill-until"  # JSON {"epoch": source's, "until": {partition: place}}
TRACES_HEADER = "traceparents"  # JSON [[row, traceparent], ...]
MAX_MESSAGE_BYTES = 900_000
_PACKED = 1.5  # bytes in memory that one byte of a message holds at least, as a first guess
_FILLED = 0.9  # how full the next message is meant to be, for rows are not equally long

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
    """`streams.contract.topics.partition_of` of each id, int64 [N]; any partition where it is null."""
    from streams.kernels.xxh3 import hashes

    found, count = hashes(ids), np.uint64(partitions)
    return (found - found // count * count).astype(np.int64)  # numpy's % takes five times as long


@dataclass(frozen=True, slots=True)
class Placed:
    """Rows in the order of the partitions of `topic` that they go to.

    `target` (int64 [N], ascending): each row's partition, of `partitions`.
    """

    load: Load
    topic: str
    target: Ints
    partitions: int

    def messages(self, headers: Mapping[str, bytes] | None = None) -> Iterator[Outgoing]:
        cuts = np.searchsorted(self.target, np.arange(self.partitions + 1))
        for partition in range(self.partitions):
            if cuts[partition] < cuts[partition + 1]:
                part = self.load.slice(int(cuts[partition]), int(cuts[partition + 1]))
                yield from messages(part, self.topic, partition, headers or {})


def place(
    load: Load,
    key: str,
    topic: str,
    partitions: int,
    written: Mapping[Place, int] | None = None,
    rows: Ints | None = None,
) -> Placed:
    """Where rows go: those of one `key` to one partition, in their order.

    Rows whose `key` is null go nowhere; those at or before `written` are left out. `rows`
    (int64, ascending) are all that go. Rows are moved at most once: each move copies every
    column.
    """
    ids = load.table[key]
    target = partitions_of(ids, partitions)
    if ids.null_count:
        valid = pc.is_valid(ids).to_numpy()
        rows = np.flatnonzero(valid) if rows is None else rows[valid[rows]]
    if rows is not None:
        target = target[rows]
    if written:
        source = load.source if rows is None else load.source.take(rows)
        fresh = np.flatnonzero(_unwritten(source, target, topic, written))
        rows, target = fresh if rows is None else rows[fresh], target[fresh]
    if bool((target[1:] < target[:-1]).any()):
        order = _order(target)
        rows, target = order if rows is None else rows[order], target[order]
    if rows is not None and not _is_all(rows, load.table.num_rows):
        load = load.take(rows)
    return Placed(load, topic, target, partitions)


def _order(target: Ints) -> Ints:
    """A stable order by partition. numpy sorts 16 bits by radix, seven times as fast."""
    narrow = int(target.max()) < 2**16
    return np.argsort(target.astype(np.uint16) if narrow else target, kind="stable")


def _is_all(rows: Ints, count: int) -> bool:
    """Whether these are 0, 1, ... count - 1."""
    return len(rows) == count and bool((np.diff(rows) == 1).all())


def messages(
    load: Load,
    topic: str,
    partition: int,
    headers: Mapping[str, bytes],
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> Iterator[Outgoing]:
    """The rows as messages of at most `max_bytes`, as few as what was encoded so far tells.

    One row alone may be larger.
    """
    batch = _one_batch(load.table)
    start, left = 0, load.table.num_rows
    step = min(left, max(1, int(left * _PACKED * max_bytes / max(1, batch.nbytes))))
    while left:
        step = min(step, left)
        payload = to_ipc(batch.slice(start, step))
        share = max_bytes / len(payload)
        if share < 1 and step > 1:
            step = max(1, int(step * share * _FILLED))
            continue
        yield _message(load.slice(start, start + step), payload, topic, partition, headers)
        start, left = start + step, left - step
        step = max(1, int(step * share * _FILLED))


def _message(
    load: Load, payload: bytes, topic: str, partition: int, headers: Mapping[str, bytes]
) -> Outgoing:
    own = {UNTIL_HEADER: _until(load.source), **headers}
    if load.traces:
        own[TRACES_HEADER] = orjson.dumps(sorted(load.traces.items()))
    return Outgoing(topic, payload, partition=partition, headers=own)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def written_until(records: Iterable[Record], epoch: str) -> dict[Place, int]:
    """The last place of each source partition in each partition that these messages lie in.

    Marks of another epoch do not count.
    """
    found: dict[Place, int] = {}
    for record in records:
        mark = orjson.loads(record.header(UNTIL_HEADER) or b"{}")
        if mark.get("epoch") != epoch:
            continue
        for source, place in mark["until"].items():
            at = (record.topic, record.partition, int(source))
            found[at] = max(place, found.get(at, place))
    return found


def _until(source: Source) -> bytes:
    return until_mark(source.epoch, last_places(source.partitions, source.places))


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
