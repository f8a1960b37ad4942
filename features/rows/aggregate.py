"""The one kernel: a batch of events folded into rows, whoever brings the batch.

Knows declarations, tiles and stamps. Does not know stores: online folds, backfills and
point-in-time reads all call `fold`. Everything kept is a sum of integers, a maximum or
the top of a total order, so batches may come in any order of partitions and the values
are the same.

Guarantees, per row: an event whose message lies at or before the row's offset in its
(epoch, partition) lane changes nothing, so messages may be folded one by one or many at
once, and cut otherwise in a replay; an event among the row's recent ids is not counted again, whatever
epoch it comes under; an event at or before the row's erasure is never counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from features.definitions import TILE_SIZES_MS, EntityDefinition, Sum, kind_codes, of_kinds
from features.kernels.layout import tile_key
from features.rows.byte_slices import Spans, given, offsets_of, readable_bytes
from streams.bus.contract import Stamp
from streams.bus.delivery import MESSAGE_OFFSET, MESSAGE_PARTITION
from streams.contract.clock import HOUR_MS

READER_SLACK_MS = HOUR_MS  # how far a reader's now may lie behind the row's newest event


PLACED = (
    *("event_id", "user_id", "kind", "event_time_ms", "ingested_at_ms"),
    *("source_partition", "source_offset"),
)


@dataclass(frozen=True)
class Batch:
    """Events that name an entity, with `row` as the place of their id in `names`."""

    names: pa.StringArray  # distinct ids
    row: np.ndarray  # int64 [M]
    time: np.ndarray  # int64 [M], event time in ms
    kind: np.ndarray  # uint8 [M]
    hash: np.ndarray  # uint64 [M], of (user id, event id)
    table: pa.Table  # the same events: where and when they were, and what features name

    @cached_property
    def ids(self) -> list[str]:
        """`names` as Python's strings; who folds many rows does without."""
        ids: list[str] = self.names.to_pylist()
        return ids

    def where(self, keep: np.ndarray) -> Batch:
        """The events under a mask; `names` stay."""
        if keep.all():
            return self
        rest = (self.row[keep], self.time[keep], self.kind[keep], self.hash[keep])
        return Batch(self.names, *rest, self.table.filter(pa.array(keep)))


@dataclass(frozen=True)
class Folded:
    """The rows that a batch changed."""

    changed: np.ndarray  # int64 [C], places in the batch's names, ascending
    rows: Spans  # their bytes
    before: np.ndarray  # uint64 [C], digests of what they were folded from; 0: no row
    last_event_ms: np.ndarray  # int64 [C]
    foreign: int  # rows, changed or not, that follow other declarations in this generation


def group(definition: EntityDefinition, events: pa.Table) -> Batch:
    """The batch's events that name the entity, without those marked duplicate."""
    id_column = events.column(definition.id_column)
    keep = pc.and_(pc.is_valid(id_column), pc.invert(events.column("duplicate")))
    # Filtering columns that no feature names would cost as much as the fold.
    combined = [c for c in (MESSAGE_OFFSET, MESSAGE_PARTITION) if c in events.column_names]
    table = events.select([*dict.fromkeys((*PLACED, *combined, *definition.event_columns))])
    table = (table if pc.all(keep).as_py() else table.filter(keep)).combine_chunks()
    encoded = table.column(definition.id_column).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return Batch(
        names=encoded.dictionary,
        row=encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64),
        time=table.column("event_time_ms").to_numpy(),
        kind=table.column("kind").to_numpy(),
        hash=event_hashes(table),
        table=table,
    )


def apart(events: pa.Table, batch: Batch) -> list[pa.Table]:
    """The events of several partitions as they may be folded: all at once, unless one row has
    events of two. A topic's shuffle brings none such; who calls by hand may."""
    if MESSAGE_PARTITION not in events.column_names:
        return [events]
    partition, last = _placed(batch, MESSAGE_PARTITION, 0), np.empty(len(batch.names), np.int64)
    last[batch.row] = partition
    if (last[batch.row] == partition).all():
        return [events]
    return [events.filter(pc.equal(events[MESSAGE_PARTITION], one)) for one in np.unique(partition)]


def event_hashes(table: pa.Table) -> np.ndarray:
    """xxh3-64 of user id, NUL, event id. Stored in rows: never change it."""
    from streams.kernels.xxh3 import joined_hashes

    return joined_hashes(table.column("user_id"), table.column("event_id"))


def fold(
    definition: EntityDefinition, rows: Spans, batch: Batch, stamp: Stamp, generation: int = 0
) -> Folded:
    """Folds `batch` into `rows` (one per id of the batch, in that order; empty: none).

    Rows of another generation count as empty, but for their erasure. The input rows
    are not changed.
    """
    kept = Stored.of(rows)
    return Fold(definition, batch, stamp, generation).rows(np.arange(len(rows)), kept)


@dataclass(frozen=True)
class Stored:
    """Rows where they lie: row k takes `size[k]` bytes (0: none) at `start[k]` of `cached`
    and, from its end on, of `read`."""

    cached: np.ndarray  # uint8
    read: np.ndarray  # uint8
    start: np.ndarray  # int64 [K]
    size: np.ndarray  # int64 [K]

    @classmethod
    def of(cls, rows: Spans) -> Stored:
        return cls(np.zeros(0, np.uint8), rows.data, rows.offsets[:-1], rows.lengths)


class Fold:
    """A batch laid out by row, to be folded into some of its rows after others."""

    def __init__(
        self, definition: EntityDefinition, batch: Batch, stamp: Stamp, generation: int
    ) -> None:
        from features.kernels.fold import by_row

        rules, table = _rules(definition), batch.table
        row = given(batch.row)
        first, event = by_row(row, len(batch.names))
        epoch = np.uint64(xxhash.xxh3_64_intdigest(stamp.epoch.encode()))
        self._events = (
            *map(given, (first, event, row, batch.time, batch.kind, batch.hash)),
            given(_placed(batch, MESSAGE_OFFSET, stamp.offset)),
            given(_placed(batch, MESSAGE_PARTITION, stamp.partition).astype(np.uint64)),
            *(epoch, np.uint64(generation)),
            *(np.uint64(definition.fingerprint), definition.recent),
            given(_addends(rules.sources, table)),
            *map(given, (rules.first, rules.key, rules.tile_ms, rules.source)),
            *map(given, (rules.keep_ms, rules.size_ms, *_listed(definition))),
            *_texts(definition, table),
        )

    def rows(self, places: np.ndarray, stored: Stored) -> Folded:
        """`places` (int64 [K], ascending) name the rows that `stored` holds."""
        from features.kernels.fold import fold_rows

        changed, data, offsets, before, last, foreign = fold_rows(
            *map(readable_bytes, (stored.cached, stored.read)),
            *map(given, (stored.start, stored.size, places)),
            *self._events,
        )
        return Folded(places[changed], Spans(data, offsets), before, last, foreign)


def _placed(batch: Batch, column: str, otherwise: int) -> np.ndarray:
    """int64 [M]: where the message lay that each event came in."""
    if column in batch.table.column_names:
        places: np.ndarray = batch.table.column(column).to_numpy()
        return places
    return np.full(len(batch.row), otherwise, np.int64)


@dataclass(frozen=True)
class _Rules:
    """What `features.kernels.merge.add_tiles` does with an event of each kind."""

    first: np.ndarray  # int64 [257]: where each kind's rules begin
    key: np.ndarray  # uint64, of the tile at index 0
    tile_ms: np.ndarray
    source: np.ndarray  # 0: counted; i + 1: sums `sources[i]`
    sources: tuple[str, ...]
    keep_ms: np.ndarray  # int64 [sizes, counters], from a tile's end to the row's newest event
    size_ms: np.ndarray


@lru_cache
def _rules(definition: EntityDefinition) -> _Rules:
    """A tile is kept while a reader within READER_SLACK_MS of the newest event can ask for it:
    a function of the set of events alone, so the order of arrival cannot change it."""
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
    return _Rules(
        offsets_of(np.array([len(of_kind[code]) for code in range(256)])),
        np.array(key, np.uint64),
        np.array(tile_ms, np.int64),
        np.array(source, np.int64),
        sources,
        keep_ms,
        np.array(TILE_SIZES_MS, np.int64),
    )


def _addends(sources: tuple[str, ...], table: pa.Table) -> np.ndarray:
    """int64 [1 + sources, M]: ones, then what each event adds to each sum."""
    found = np.ones((1 + len(sources), table.num_rows), np.int64)
    for place, source in enumerate(sources, start=1):
        found[place] = pc.fill_null(table.column(source).cast(pa.int64()), 0).to_numpy()
    return found


def _texts(
    definition: EntityDefinition, table: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each event brings to each list: its bytes, -1 for none (int64 [lists, M]), and
    where they lie (int64 [lists, M]) in the text (uint8)."""
    length = np.empty((len(definition.lists), table.num_rows), np.int64)
    start, texts, end = np.empty_like(length), {}, 0
    for name in dict.fromkeys(feature.source for feature in definition.lists):
        column = table.column(name).combine_chunks()
        spans = Spans.of_array(column)
        sizes = spans.lengths
        if column.null_count:
            sizes = np.where(column.is_null().to_numpy(zero_copy_only=False), -1, sizes)
        texts[name] = spans.data
        for place, feature in enumerate(definition.lists):
            if feature.source == name:
                length[place], start[place] = sizes, spans.offsets[:-1] + end
        end += len(spans.data)
    text = np.concatenate([*texts.values(), np.zeros(0, np.uint8)])
    return given(length), given(start), given(text)


@lru_cache
def _listed(definition: EntityDefinition) -> tuple[np.ndarray, np.ndarray]:
    """Which kinds each list takes (bool [lists, 256]), and how many it keeps."""
    codes = np.arange(256)
    takes = np.zeros((len(definition.lists), len(codes)), bool)
    for place, feature in enumerate(definition.lists):
        takes[place] = of_kinds(codes, feature.kinds)
    return takes, np.array([feature.n for feature in definition.lists], np.int64)
