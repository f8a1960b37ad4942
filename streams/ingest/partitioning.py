"""Partitioning: rows of one table to the partitions of their entities, as messages.

Knows our hash, Arrow-IPC messages, their size and their headers. Does not know brokers.

Each message carries the last source position that it contains (`SOURCE_MARK_HEADER`). A loop
whose commit was lost reads these marks (`streams.ingest.recovery`) and skips the rows that are
written already, so it writes each row once even without transactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from streams.bus.contract import Outgoing
from streams.bus.polled import Record, last_positions
from streams.contract.schema import to_ipc
from streams.contract.trace_headers import TRACES_HEADER

SOURCE_MARK_HEADER = "tidemill-until"  # JSON {"epoch": topic id, "until": {partition: position}}
MAX_MESSAGE_BYTES = 900_000
_MEMORY_PER_WIRE_BYTE = 1.5  # at least, as a first guess
_FILL_TARGET = 0.9  # of MAX_MESSAGE_BYTES, because rows differ in length

Ints = npt.NDArray[np.int64]
SourceTarget = tuple[str, int, int]
"""(target topic, target partition, source partition)."""


@dataclass(frozen=True, slots=True)
class SourcePositions:
    """Where the N rows of a table come from: int64 [N] each.

    A position is the offset of a row's message, or (offset << row bits) | row within it.
    Positions ascend within a partition.
    """

    topic_id: str
    partitions: Ints
    positions: Ints

    def take(self, rows: Ints) -> SourcePositions:
        return SourcePositions(self.topic_id, self.partitions[rows], self.positions[rows])


@dataclass(frozen=True, slots=True)
class SourcedRows:
    """A table with its rows' source and their traces (row -> traceparent)."""

    table: pa.Table
    source: SourcePositions
    traces: Mapping[int, str] = field(default_factory=dict)

    def take(self, rows: Ints) -> SourcedRows:
        traces: dict[int, str] = {}
        if self.traces:
            new_row = {row: new for new, row in enumerate(rows.tolist())}
            traces = {new_row[row]: t for row, t in self.traces.items() if row in new_row}
        return SourcedRows(self.table.take(pa.array(rows)), self.source.take(rows), traces)

    def slice(self, start: int, stop: int) -> SourcedRows:
        whole = self.source
        partitions, positions = whole.partitions[start:stop], whole.positions[start:stop]
        source = SourcePositions(whole.topic_id, partitions, positions)
        traces = {r - start: t for r, t in self.traces.items() if start <= r < stop}
        return SourcedRows(self.table.slice(start, stop - start), source, traces)


def partitions_of(ids: pa.ChunkedArray | pa.Array, partitions: int) -> Ints:
    """`streams.contract.topics.partition_of` of each id, int64 [N]; arbitrary for a null id."""
    from streams.kernels.xxh3 import hashes

    found, count = hashes(ids), np.uint64(partitions)
    return (found - found // count * count).astype(np.int64)  # numpy's % takes five times as long


@dataclass(frozen=True, slots=True)
class PartitionedRows:
    """Rows in the order of their target partitions in `topic`.

    `target` (int64 [N], ascending): each row's partition, below `partitions`.
    """

    rows: SourcedRows
    topic: str
    target: Ints
    partitions: int

    def messages(self, headers: Mapping[str, bytes] | None = None) -> Iterator[Outgoing]:
        bounds = np.searchsorted(self.target, np.arange(self.partitions + 1)).tolist()
        for partition in range(self.partitions):
            if bounds[partition] < bounds[partition + 1]:
                rows = self.rows.slice(bounds[partition], bounds[partition + 1])
                yield from to_messages(rows, self.topic, partition, headers or {})


def partition_rows(
    source: SourcedRows,
    key: str,
    topic: str,
    partitions: int,
    written: Mapping[SourceTarget, int] | None = None,
    rows: Ints | None = None,
) -> PartitionedRows:
    """Assigns rows to partitions by the column `key`; within a partition their order stays.

    Left out are rows with a null `key`, rows at or before the positions in `written`, and rows
    that are not in `rows` (int64, ascending). Rows are moved at most once: a move copies every
    column.
    """
    ids = source.table[key]
    target = partitions_of(ids, partitions)
    if ids.null_count:
        valid = pc.is_valid(ids).to_numpy()
        rows = np.flatnonzero(valid) if rows is None else rows[valid[rows]]
    if rows is not None:
        target = target[rows]
    if written:
        positions = source.source if rows is None else source.source.take(rows)
        unwritten = np.flatnonzero(_is_unwritten(positions, target, topic, written))
        rows, target = unwritten if rows is None else rows[unwritten], target[unwritten]
    if bool((target[1:] < target[:-1]).any()):
        order = _stable_order(target)
        rows, target = order if rows is None else rows[order], target[order]
    if rows is not None and not _is_identity(rows, source.table.num_rows):
        source = source.take(rows)
    return PartitionedRows(source, topic, target, partitions)


def _stable_order(target: Ints) -> Ints:
    """A stable order by partition. numpy radix-sorts 16-bit integers, seven times as fast."""
    narrow = int(target.max()) < 2**16
    return np.argsort(target.astype(np.uint16) if narrow else target, kind="stable")


def _is_identity(rows: Ints, count: int) -> bool:
    """Whether `rows` are 0, 1, ... count - 1."""
    return len(rows) == count and bool((np.diff(rows) == 1).all())


def to_messages(
    rows: SourcedRows,
    topic: str,
    partition: int,
    headers: Mapping[str, bytes],
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> Iterator[Outgoing]:
    """The rows as messages of at most `max_bytes` (a single row may exceed it).

    The row count of each message is estimated from the size of the last one.
    """
    batch = _to_batch(rows.table)
    start, left = 0, rows.table.num_rows
    guess = left * _MEMORY_PER_WIRE_BYTE * max_bytes / max(1, batch.nbytes)
    step = min(left, max(1, int(guess)))
    while left:
        step = min(step, left)
        payload = to_ipc(batch.slice(start, step))
        ratio = max_bytes / len(payload)
        if ratio < 1 and step > 1:
            step = max(1, int(step * ratio * _FILL_TARGET))
            continue
        yield _to_message(rows.slice(start, start + step), payload, topic, partition, headers)
        start, left = start + step, left - step
        step = max(1, int(step * ratio * _FILL_TARGET))


def _to_message(
    rows: SourcedRows, payload: bytes, topic: str, partition: int, headers: Mapping[str, bytes]
) -> Outgoing:
    last = last_positions(rows.source.partitions, rows.source.positions)
    own = {SOURCE_MARK_HEADER: source_mark(rows.source.topic_id, last), **headers}
    if rows.traces:
        own[TRACES_HEADER] = orjson.dumps(sorted(rows.traces.items()))
    return Outgoing(topic, payload, partition=partition, headers=own)


def _to_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def last_written(records: Iterable[Record], topic_id: str) -> dict[SourceTarget, int]:
    """The last position of each source partition in each partition of these messages.

    Marks of a source with another `topic_id` do not count.
    """
    found: dict[SourceTarget, int] = {}
    for record in records:
        for source, position in _parse_mark(record.header(SOURCE_MARK_HEADER), topic_id):
            target = (record.topic, record.partition, source)
            found[target] = max(position, found.get(target, position))
    return found


def _parse_mark(header: bytes | None, topic_id: str) -> list[tuple[int, int]]:
    """(source partition, position) of each entry; none for another topic id or a foreign header."""
    try:
        mark = orjson.loads(header or b"{}")
        if mark.get("epoch") != topic_id:
            return []
        found = [(int(source), int(position)) for source, position in mark["until"].items()]
        return [(source, position) for source, position in found if 0 <= position < 2**63]
    except (ValueError, TypeError, LookupError, AttributeError):
        return []


def source_mark(topic_id: str, last: Mapping[int, int]) -> bytes:
    """The value of SOURCE_MARK_HEADER; `last`: source partition -> its last position."""
    return orjson.dumps({"epoch": topic_id, "until": {str(p): at for p, at in last.items()}})


def _is_unwritten(
    source: SourcePositions, target: Ints, topic: str, written: Mapping[SourceTarget, int]
) -> npt.NDArray[np.bool_]:
    """bool [N]."""
    unwritten = np.ones(len(target), dtype=np.bool_)
    for (name, partition, source_partition), position in written.items():
        if name == topic:
            there = (target == partition) & (source.partitions == source_partition)
            unwritten &= ~(there & (source.positions <= position))
    return unwritten
