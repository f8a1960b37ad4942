"""The fold: a batch of events and stored rows in, new rows out. Every caller shares this code.

Knows declarations, tiles and stamps. Does not know stores: live folds, backfills, Spark and
point-in-time replays all fold here. A row holds sums of integers, maxima and the top of total
orders, so the order of partitions does not change its values.

Guarantees for each row:
- An event whose message is at or before the row's offset for its topic id and partition changes
  nothing. Messages may therefore be folded one by one or combined, and a replay may combine
  them differently.
- An event among the row's recent ids is not counted again, under any topic id.
- An event at or before the row's erasure is never counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from features.definitions import TILE_SIZES_MS, EntityDefinition, Sum, is_kind, kind_codes
from features.kernels.layout import tile_key
from features.rows.byte_slices import (
    ByteSlices,
    offsets_from_lengths,
    readonly_bytes,
    readonly_view,
)
from streams.bus.contract import Stamp
from streams.bus.delivery import MESSAGE_OFFSET, MESSAGE_PARTITION
from streams.contract.clock import HOUR_MS

if TYPE_CHECKING:  # importing compiled code takes a second
    from features.kernels.fold_inputs import Rules

READER_SLACK_MS = HOUR_MS  # how far a reader's `now` may lag behind the row's newest event

BASE_EVENT_COLUMNS = (
    *("event_id", "user_id", "kind", "event_time_ms", "ingested_at_ms"),
    *("source_partition", "source_offset"),
)


@dataclass(frozen=True)
class EventBatch:
    """M events that name an entity; `row` is the place of each event's id in `names`."""

    names: pa.StringArray  # distinct ids
    row: np.ndarray  # int64 [M]
    time: np.ndarray  # int64 [M], event time in ms
    kind: np.ndarray  # uint8 [M]
    hash: np.ndarray  # uint64 [M], see `event_hashes`
    table: pa.Table  # the same events: `BASE_EVENT_COLUMNS` and the columns that features need

    @cached_property
    def ids(self) -> list[str]:
        """`names` as Python strings; slow for many rows."""
        ids: list[str] = self.names.to_pylist()
        return ids

    def where(self, keep: np.ndarray) -> EventBatch:
        """The events under a mask (bool [M]); `names` stay."""
        if keep.all():
            return self
        rest = (self.row[keep], self.time[keep], self.kind[keep], self.hash[keep])
        return EventBatch(self.names, *rest, self.table.filter(pa.array(keep)))


@dataclass(frozen=True)
class FoldedRows:
    """The rows that a batch changed."""

    changed: np.ndarray  # int64 [C], places in the batch's names, ascending
    rows: ByteSlices  # their bytes
    expected_digest: np.ndarray  # uint64 [C], digests of the stored rows; 0: no row
    last_event_ms: np.ndarray  # int64 [C], ms
    foreign_rows: int  # stored rows of this rebuild id that follow other declarations


def group_by_entity(definition: EntityDefinition, events: pa.Table) -> EventBatch:
    """The events that name the entity, without those marked duplicate.

    events: `EVENT_SCHEMA`'s `duplicate`, `BASE_EVENT_COLUMNS` and the definition's columns.
    """
    id_column = events.column(definition.id_column)
    keep = pc.and_(pc.is_valid(id_column), pc.invert(events.column("duplicate")))
    if definition.kinds is not None:
        codes = pa.array(kind_codes(definition.kinds), pa.uint8())
        keep = pc.and_(keep, pc.is_in(events.column("kind"), value_set=codes))
    # Filtering columns that no feature needs would cost as much as the fold.
    combined = [c for c in (MESSAGE_OFFSET, MESSAGE_PARTITION) if c in events.column_names]
    table = events.select(
        [*dict.fromkeys((*BASE_EVENT_COLUMNS, *combined, *definition.event_columns))]
    )
    table = (table if pc.all(keep).as_py() else table.filter(keep)).combine_chunks()
    encoded = table.column(definition.id_column).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return EventBatch(
        names=encoded.dictionary,
        row=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        time=table.column("event_time_ms").to_numpy(),
        kind=table.column("kind").to_numpy(),
        hash=event_hashes(table),
        table=table,
    )


def split_by_partition(events: pa.Table, batch: EventBatch) -> list[pa.Table]:
    """The events in tables that can be folded one after another.

    One table, unless some row has events of two partitions. Partitioning by key rules that out
    for a topic's deliveries, not for other callers.
    """
    if MESSAGE_PARTITION not in events.column_names:
        return [events]
    partition, last = (
        _message_column(batch, MESSAGE_PARTITION, 0),
        np.empty(len(batch.names), np.int64),
    )
    last[batch.row] = partition
    if (last[batch.row] == partition).all():
        return [events]
    return [events.filter(pc.equal(events[MESSAGE_PARTITION], one)) for one in np.unique(partition)]


def event_hashes(table: pa.Table) -> np.ndarray:
    """xxh3-64 of user id, NUL, event id. Stored in rows: never change it."""
    from streams.kernels.xxh3 import joined_hashes

    return joined_hashes(table.column("user_id"), table.column("event_id"))


def fold_events(
    definition: EntityDefinition,
    rows: ByteSlices,
    batch: EventBatch,
    stamp: Stamp,
    rebuild_id: int = 0,
) -> FoldedRows:
    """Folds `batch` into `rows`: one per id of the batch, in that order; empty: no row.

    Rows of another rebuild id count as empty, except for their erasure. `rows` stays unchanged.
    """
    stored = StoredRows.from_slices(rows)
    return PreparedFold(definition, batch, stamp, rebuild_id).fold_into(
        np.arange(len(rows)), stored
    )


@dataclass(frozen=True)
class StoredRows:
    """K rows in two buffers: row k has `size[k]` bytes (0: no row) at `start[k]` of `cached`
    followed by `read`."""

    cached: np.ndarray  # uint8
    read: np.ndarray  # uint8
    start: np.ndarray  # int64 [K]
    size: np.ndarray  # int64 [K]

    @classmethod
    def from_slices(cls, rows: ByteSlices) -> StoredRows:
        return cls(np.zeros(0, np.uint8), rows.data, rows.offsets[:-1], rows.lengths)


class PreparedFold:
    """A batch arranged by row, to be folded into parts of its rows one after another."""

    def __init__(
        self, definition: EntityDefinition, batch: EventBatch, stamp: Stamp, rebuild_id: int
    ) -> None:
        from features.kernels.fold import by_row
        from features.kernels.fold_inputs import Events, Origin

        self._rules, sources = _rules(definition)
        row = readonly_view(batch.row)
        first, order = by_row(row, len(batch.names))
        offset = _message_column(batch, MESSAGE_OFFSET, stamp.offset)
        partition = _message_column(batch, MESSAGE_PARTITION, stamp.partition)
        length, start, text = _list_texts(definition, batch.table)
        events = Events(
            *(first, order, row, batch.time, batch.kind, batch.hash),
            *(offset, partition.astype(np.uint64), _counter_addends(sources, batch.table)),
            *(length, start, text),
        )
        self._events = Events._make(map(readonly_view, events))
        topic_id = xxhash.xxh3_64_intdigest(stamp.topic_id.encode())
        self._origin = Origin(np.uint64(topic_id), np.uint64(rebuild_id))

    def fold_into(self, places: np.ndarray, stored: StoredRows) -> FoldedRows:
        """Folds into the batch's rows `places` (int64 [K], ascending), which `stored` holds."""
        from features.kernels.fold import fold_rows
        from features.kernels.fold_inputs import RowBuffers

        buffers = map(readonly_bytes, (stored.cached, stored.read))
        rows = RowBuffers(*buffers, *map(readonly_view, (stored.start, stored.size, places)))
        found = fold_rows(rows, self._events, self._rules, self._origin)
        return FoldedRows(
            places[found.changed],
            ByteSlices(found.data, found.offsets),
            found.digest_before,
            found.newest_ms,
            found.foreign,
        )


def _message_column(batch: EventBatch, column: str, otherwise: int) -> np.ndarray:
    """int64 [M]: a column of the message that carried each event, or one value for all."""
    if column in batch.table.column_names:
        places: np.ndarray = batch.table.column(column).to_numpy()
        return places
    return np.full(len(batch.row), otherwise, np.int64)


@lru_cache
def _rules(definition: EntityDefinition) -> tuple[Rules, tuple[str, ...]]:
    """The declarations as numbers, and the columns of the sums: `Rules.source` is 0 where events
    are counted, i + 1 where column i is summed.

    A tile is kept while a reader within READER_SLACK_MS of the newest event can need it. That
    depends on the set of events alone, so the order of arrival cannot change it.
    """
    from features.kernels.fold_inputs import Rules

    sources = tuple(dict.fromkeys(c.source for c in definition.counters if isinstance(c, Sum)))
    keep_ms = np.zeros((len(TILE_SIZES_MS), len(definition.counters)), np.int64)
    of_kind: dict[int, list[tuple[np.ndarray, int, int]]] = {code: [] for code in range(256)}
    for slot, counter in enumerate(definition.counters):
        source = 1 + sources.index(counter.source) if isinstance(counter, Sum) else 0
        for window in counter.windows:
            size = TILE_SIZES_MS.index(window.tile_ms)
            keep_ms[size, slot] = max(keep_ms[size, slot], window.span_ms + READER_SLACK_MS)
        for tile_ms in dict.fromkeys(window.tile_ms for window in counter.windows):
            key = tile_key(TILE_SIZES_MS.index(tile_ms), slot, np.zeros(1, np.int64))
            for code in kind_codes(counter.kinds):
                of_kind[code].append((key[0], tile_ms, source))
    rules = [rule for code in range(256) for rule in of_kind[code]]
    key, tile_ms, source = zip(*rules, strict=True)
    tables = (
        offsets_from_lengths(np.array([len(of_kind[code]) for code in range(256)])),
        np.array(key, np.uint64),
        np.array(tile_ms, np.int64),
        np.array(source, np.int64),
        keep_ms,
        np.array(TILE_SIZES_MS, np.int64),
        *_list_rules(definition),
    )
    fingerprint = np.uint64(definition.fingerprint)
    return Rules(fingerprint, definition.recent, *map(readonly_view, tables)), sources


def _counter_addends(sources: tuple[str, ...], table: pa.Table) -> np.ndarray:
    """int64 [1 + sources, M]: ones for counts, then what each event adds to each sum."""
    found = np.ones((1 + len(sources), table.num_rows), np.int64)
    for place, source in enumerate(sources, start=1):
        found[place] = pc.fill_null(table.column(source).cast(pa.int64()), 0).to_numpy()
    return found


def _list_texts(
    definition: EntityDefinition, table: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lengths, starts, text): what each event adds to each list. Lengths (int64 [lists, M], -1:
    nothing) and starts (int64 [lists, M]) are in bytes of the text (uint8)."""
    length = np.empty((len(definition.lists), table.num_rows), np.int64)
    start, texts, end = np.empty_like(length), {}, 0
    for name in dict.fromkeys(feature.source for feature in definition.lists):
        column = table.column(name).combine_chunks()
        slices = ByteSlices.from_arrow(column)
        sizes = slices.lengths
        if column.null_count:
            sizes = np.where(column.is_null().to_numpy(zero_copy_only=False), -1, sizes)
        texts[name] = slices.data
        for place, feature in enumerate(definition.lists):
            if feature.source == name:
                length[place], start[place] = sizes, slices.offsets[:-1] + end
        end += len(slices.data)
    text = np.concatenate([*texts.values(), np.zeros(0, np.uint8)])
    return length, start, text


def _list_rules(definition: EntityDefinition) -> tuple[np.ndarray, np.ndarray]:
    """Which kinds each list takes (bool [lists, 256]), and how many values it keeps."""
    codes = np.arange(256)
    takes = np.zeros((len(definition.lists), len(codes)), bool)
    for place, feature in enumerate(definition.lists):
        takes[place] = is_kind(codes, feature.kinds)
    return takes, np.array([feature.n for feature in definition.lists], np.int64)
