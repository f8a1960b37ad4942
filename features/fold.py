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

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from features.definitions import TILE_SIZES_MS, EntityDefinition, Sum, kind_codes, of_kinds
from features.merge import merged_order, newest_first_key, rank, ties_by_falling_hash
from features.spans import offsets_of
from features.tiles import HEAD, LANE, RECENT, Rows, tile_key
from streams.bus import Stamp
from streams.clock import DAY_MS, HOUR_MS
from streams.delivery import MESSAGE_OFFSET

LANES_KEPT = 8  # epochs and partitions that a row remembers; a zombie is of the last few
SAME_EVENT_MS = DAY_MS  # an id used again further apart in event time is another event
_LOW_BITS = 2**20
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
    """The rows that a batch changed: `changed` are places in the batch's names, ascending."""

    changed: np.ndarray
    rows: Rows


def group(definition: EntityDefinition, events: pa.Table) -> Batch:
    """The batch's events that name the entity, without those marked duplicate."""
    id_column = events.column(definition.id_column)
    keep = pc.and_(pc.is_valid(id_column), pc.invert(events.column("duplicate")))
    # Filtering columns that no feature names would cost as much as the fold.
    combined = (MESSAGE_OFFSET,) if MESSAGE_OFFSET in events.column_names else ()
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


def event_hashes(table: pa.Table) -> np.ndarray:
    """xxh3-64 of user id, NUL, event id. Stored in rows: never change it."""
    user, event = (table.column(name).cast(pa.binary()) for name in ("user_id", "event_id"))
    keys = pc.binary_join_element_wise(user, event, b"\0").to_pylist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, keys), np.uint64, len(keys))


def fold(
    definition: EntityDefinition, rows: Rows, batch: Batch, stamp: Stamp, generation: int = 0
) -> Folded:
    """Folds `batch` into `rows` (one per id of the batch, in that order).

    Rows of another generation count as empty, but for their erasure. The input rows
    are not changed.
    """
    rows = _current(rows, generation)
    lane = _lane(stamp)
    fresh = batch.where(_offsets(batch, stamp) > _seen_until(rows, lane)[batch.row])
    fresh = fresh.where(fresh.time > rows.head["erased_ms"][fresh.row])
    fresh = fresh.where(_first_time(rows, fresh))
    changed = np.flatnonzero(np.bincount(fresh.row, minlength=len(rows)))
    rows, place = _select(rows, changed, len(batch.names))
    row = place[fresh.row]
    rows.head["generation"] = generation
    rows.head["fingerprint"] = definition.fingerprint
    np.maximum.at(rows.head["last_event_ms"], row, fresh.time)
    _add_recent(definition, rows, row, fresh)
    by_row = _ByRow.of(row, len(rows))
    _add_tiles(definition, rows, fresh, by_row)
    _add_entries(definition, rows, fresh, by_row)
    _advance(rows, lane, row, _offsets(fresh, stamp))
    return Folded(changed, rows)


def _lane(stamp: Stamp) -> np.ndarray:
    epoch = xxhash.xxh3_64_intdigest(stamp.epoch.encode())
    return np.array([(epoch, stamp.partition, stamp.offset)], LANE)


def _current(rows: Rows, generation: int) -> Rows:
    """Rows of other generations emptied; only their erasure stays."""
    old = rows.head["generation"] != generation
    if not old[rows.lane_row].any():  # whoever counted an event has its lane
        return rows
    head = rows.head.copy()
    empty = np.zeros(int(old.sum()), HEAD)
    empty["erased_ms"] = head["erased_ms"][old]
    head[old] = empty
    lane, tile, entry, recent = (
        ~old[row] for row in (rows.lane_row, rows.tile_row, rows.entry_row, rows.recent_row)
    )
    return Rows(
        head,
        *(rows.lane_row[lane], rows.lane[lane]),
        *(rows.tile_row[tile], rows.tile[tile]),
        *(rows.entry_row[entry], rows.entry[entry], rows.text.filter(pa.array(entry))),
        *(rows.recent_row[recent], rows.recent[recent]),
    )


def _offsets(batch: Batch, stamp: Stamp) -> np.ndarray:
    """int64 [M]: the offset of the message that each event came in."""
    if MESSAGE_OFFSET in batch.table.column_names:
        offsets: np.ndarray = batch.table.column(MESSAGE_OFFSET).to_numpy()
        return offsets
    return np.full(len(batch.row), stamp.offset, np.int64)


def _seen_until(rows: Rows, lane: np.ndarray) -> np.ndarray:
    """int64 [N]: the last offset of this lane that the row has counted, -1 for none."""
    same = _same_lane(rows, lane)
    seen = np.full(len(rows), -1, np.int64)
    seen[rows.lane_row[same]] = rows.lane["offset"][same]
    return seen


def _same_lane(rows: Rows, lane: np.ndarray) -> np.ndarray:
    """bool: the part is of the lane's epoch and partition; at most one in a row is."""
    same = rows.lane["epoch"] == lane["epoch"]
    return np.asarray(same & (rows.lane["partition"] == lane["partition"]))


def _first_time(rows: Rows, batch: Batch) -> np.ndarray:
    """bool [M]: neither among the row's recent ids nor earlier in this batch."""
    near = _maybe_among(rows.recent["hash"], batch.hash)
    row = np.concatenate([rows.recent_row[near], batch.row])
    event = np.concatenate([rows.recent["hash"][near], batch.hash])
    time = np.concatenate([rows.recent["time"][near], batch.time])
    first = np.ones(len(row), bool)
    in_order = np.sort(event)
    if (in_order[1:] == in_order[:-1]).any():
        order = np.lexsort((np.arange(len(row)), event, row))
        first[order] = ~_again(row[order], event[order], time[order])
    return first[len(near) :]


def _maybe_among(hashes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of the hashes whose low bits are a wanted one's: all that equal one, few more."""
    low = np.uint64(_LOW_BITS - 1)
    table = np.zeros(_LOW_BITS, bool)
    table[wanted & low] = True
    return np.flatnonzero(table[hashes & low])


def _again(row: np.ndarray, event: np.ndarray, time: np.ndarray) -> np.ndarray:
    """bool: the part before is the same event of the same row."""
    again = np.zeros(len(row), bool)
    again[1:] = (row[1:] == row[:-1]) & (event[1:] == event[:-1])
    again[1:] &= np.abs(time[1:] - time[:-1]) <= SAME_EVENT_MS
    return again


def _select(rows: Rows, changed: np.ndarray, n: int) -> tuple[Rows, np.ndarray]:
    """The changed rows alone, and int64 [n] that maps an old place to its new one."""
    if len(changed) == n:
        return replace(rows, head=rows.head.copy()), np.arange(n)
    place = np.full(n, -1, np.int64)
    place[changed] = np.arange(len(changed))
    lane, tile, entry, recent = (
        place[row] for row in (rows.lane_row, rows.tile_row, rows.entry_row, rows.recent_row)
    )
    kept = Rows(
        rows.head[changed].copy(),
        *(lane[lane >= 0], rows.lane[lane >= 0]),
        *(tile[tile >= 0], rows.tile[tile >= 0]),
        *(entry[entry >= 0], rows.entry[entry >= 0], rows.text.filter(pa.array(entry >= 0))),
        *(recent[recent >= 0], rows.recent[recent >= 0]),
    )
    return kept, place


def _add_recent(definition: EntityDefinition, rows: Rows, row: np.ndarray, batch: Batch) -> None:
    if not definition.recent:
        return
    added = np.empty(len(row), RECENT)
    added["time"], added["hash"] = batch.time, batch.hash
    rows_of = np.concatenate([rows.recent_row, row])
    recent = np.concatenate([rows.recent, added])
    key = newest_first_key(rows_of, recent["time"])
    order = merged_order(key[: len(rows.recent)], key[len(rows.recent) :])
    order = ties_by_falling_hash(order, key, recent["hash"])
    if np.bincount(rows_of, minlength=1).max() > definition.recent:
        order = order[rank(rows_of[order]) < definition.recent]
    rows.recent_row, rows.recent = rows_of[order], recent[order]


def _add_tiles(definition: EntityDefinition, rows: Rows, batch: Batch, by_row: _ByRow) -> None:
    from features.loops import merge_tiles

    rules = _rules(definition)
    rows.tile_row, rows.tile = merge_tiles(
        *(rows.tile_row, rows.tile, by_row.first, by_row.event),
        *map(_own, (batch.time, batch.kind)),
        *(_addends(rules.sources, batch.table), rules.first, rules.key, rules.tile_ms),
        *(rules.source, rules.keep_ms, rules.size_ms, rows.head["last_event_ms"].copy()),
    )


@dataclass(frozen=True)
class _ByRow:
    """Row r's events are `event[first[r]:first[r + 1]]`, in the batch's order."""

    first: np.ndarray
    event: np.ndarray

    @classmethod
    def of(cls, row: np.ndarray, n: int) -> _ByRow:
        return cls(offsets_of(np.bincount(row, minlength=n)), np.argsort(row, kind="stable"))


def _own(column: np.ndarray) -> np.ndarray:
    """Arrow's memory is read-only, which to the compiler is another type to compile for."""
    return column if column.flags.writeable else column.copy()


@dataclass(frozen=True)
class _Rules:
    """What `features.loops.merge_tiles` does with an event of each kind."""

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


def _add_entries(definition: EntityDefinition, rows: Rows, batch: Batch, by_row: _ByRow) -> None:
    from features.loops import merge_lists

    if not definition.lists:
        return
    columns = [batch.table.column(f.source).cast(pa.large_binary()) for f in definition.lists]
    lengths = [pc.fill_null(pc.binary_length(column), -1).to_numpy() for column in columns]
    rows.entry_row, rows.entry, source = merge_lists(
        *(rows.entry_row, rows.entry, by_row.first, by_row.event),
        *map(_own, (batch.time, batch.hash, batch.kind)),
        *(np.stack(lengths).astype(np.int64), *_listed(definition)),
    )
    texts = [rows.text, *(chunk for column in columns for chunk in column.chunks)]
    rows.text = pa.concat_arrays(texts).take(pa.array(source))


@lru_cache
def _listed(definition: EntityDefinition) -> tuple[np.ndarray, np.ndarray]:
    """Which kinds each list takes (bool [lists, 256]), and how many it keeps."""
    codes = np.arange(256)
    takes = np.stack([of_kinds(codes, feature.kinds) for feature in definition.lists])
    return takes, np.array([feature.n for feature in definition.lists], np.int64)


def _advance(rows: Rows, lane: np.ndarray, row: np.ndarray, offset: np.ndarray) -> None:
    """Puts this lane last in every row, at the last offset that the row has counted, and
    forgets the oldest lanes."""
    same = _same_lane(rows, lane)
    added = np.repeat(lane, len(rows))
    added["offset"] = -1
    np.maximum.at(added["offset"], row, offset)
    of_row = np.concatenate([rows.lane_row[~same], np.arange(len(rows))])
    lanes = np.concatenate([rows.lane[~same], added])
    order = np.argsort(of_row, kind="stable")
    of_row, lanes = of_row[order], lanes[order]
    from_end = rank(of_row[::-1])[::-1]
    rows.lane_row, rows.lane = of_row[from_end < LANES_KEPT], lanes[from_end < LANES_KEPT]
