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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from features.definitions import TILE_SIZES_MS, EntityDefinition, Sum, of_kinds
from features.merge import merged_order, newest_first_key, rank, ties_by_falling_hash
from features.tiles import ENTRY, HEAD, LANE, RECENT, TILE, Rows, split_key, tile_key
from streams.bus import Stamp
from streams.clock import DAY_MS, HOUR_MS
from streams.delivery import MESSAGE_OFFSET

LANES_KEPT = 8  # epochs and partitions that a row remembers; a zombie is of the last few
SAME_EVENT_MS = DAY_MS  # an id used again further apart in event time is another event
_LOW_BITS = 2**20
_KEY_BITS = 39  # of a tile's place within its row
_SLOT_BITS, _INDEX_BITS = np.uint64(31 << 32), np.uint64(2**32 - 1)
READER_SLACK_MS = HOUR_MS  # how far a reader's now may lie behind the row's newest event


PLACED = (
    *("event_id", "user_id", "kind", "event_time_ms", "ingested_at_ms"),
    *("source_partition", "source_offset"),
)


@dataclass(frozen=True)
class Batch:
    """Events that name an entity, with `row` as the place of their id in `ids`."""

    ids: list[str]
    row: np.ndarray  # int64 [M]
    time: np.ndarray  # int64 [M], event time in ms
    kind: np.ndarray  # uint8 [M]
    hash: np.ndarray  # uint64 [M], of (user id, event id)
    table: pa.Table  # the same events: where and when they were, and what features name

    def where(self, keep: np.ndarray) -> Batch:
        """The events under a mask; `ids` stay."""
        if keep.all():
            return self
        rest = (self.row[keep], self.time[keep], self.kind[keep], self.hash[keep])
        return Batch(self.ids, *rest, self.table.filter(pa.array(keep)))


@dataclass(frozen=True)
class Folded:
    """The rows that a batch changed: `changed` are places in the batch's ids, ascending."""

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
        ids=encoded.dictionary.to_pylist(),
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
    rows, place = _select(rows, changed, len(batch.ids))
    row = place[fresh.row]
    rows.head["generation"] = generation
    rows.head["fingerprint"] = definition.fingerprint
    np.maximum.at(rows.head["last_event_ms"], row, fresh.time)
    _add_recent(definition, rows, row, fresh)
    _add_tiles(definition, rows, row, fresh)
    _add_entries(definition, rows, row, fresh)
    _advance(rows, lane, row, _offsets(fresh, stamp))
    return Folded(changed, rows)


def _lane(stamp: Stamp) -> np.ndarray:
    epoch = xxhash.xxh3_64_intdigest(stamp.epoch.encode())
    return np.array([(epoch, stamp.partition, stamp.offset)], LANE)


def _current(rows: Rows, generation: int) -> Rows:
    """Rows of other generations emptied; only their erasure stays."""
    old = rows.head["generation"] != generation
    if not old.any():
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


def _add_tiles(definition: EntityDefinition, rows: Rows, row: np.ndarray, batch: Batch) -> None:
    place, key, added = _summed(*_touched_tiles(definition, row, batch))
    old, value = _in_row_order(rows.tile_row, rows.tile["key"]), rows.tile["value"].copy()
    at = np.searchsorted(old, place)
    known = np.zeros(len(at), bool)
    inside = at < len(old)
    known[inside] = old[at[inside]] == place[inside]
    value[at[known]] += added[known]
    at, place, key, added = at[~known], place[~known], key[~known], added[~known]
    rows_of = np.insert(rows.tile_row, at, place >> _KEY_BITS)
    key, value = np.insert(rows.tile["key"], at, key), np.insert(value, at, added)
    newest = rows.head["last_event_ms"]
    rows.tile_row, rows.tile = _pruned(definition, newest, rows_of, key, value)


def _touched_tiles(
    definition: EntityDefinition, row: np.ndarray, batch: Batch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, key, addend) of every tile that an event of the batch adds to, with repeats."""
    of_row = [np.zeros(0, np.int64)]
    keys, values = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for slot, counter in enumerate(definition.counters):
        hit = np.flatnonzero(of_kinds(batch.kind, counter.kinds))
        if not len(hit):
            continue
        value = np.ones(len(hit), np.int64)
        if isinstance(counter, Sum):
            value = _addend(counter.source, batch.table, hit)
        time, owner = batch.time[hit], row[hit]
        for tile_ms in {window.tile_ms for window in counter.windows}:
            index = time // tile_ms if tile_ms else np.zeros_like(time)
            of_row.append(owner)
            keys.append(tile_key(TILE_SIZES_MS.index(tile_ms), slot, index))
            values.append(value)
    return np.concatenate(of_row), np.concatenate(keys), np.concatenate(values)


def _in_row_order(row: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 that sort as (row, tile key): 2 bits of size, 5 of slot, 32 of index under the row."""
    packed = (key >> np.uint64(56) << np.uint64(37)) | (key >> np.uint64(8) & _SLOT_BITS)
    return np.asarray((row << _KEY_BITS) + (packed | key & _INDEX_BITS).astype(np.int64))


def _summed(
    row: np.ndarray, key: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(place in row order, key, sum) of each tile once, ascending."""
    if len(row) == 0:
        return row, key, value
    place = _in_row_order(row, key)
    order = np.argsort(place, kind="stable")
    place, key, value = place[order], key[order], value[order]
    starts = np.ones(len(place), bool)
    starts[1:] = place[1:] != place[:-1]
    first = np.flatnonzero(starts)
    return place[first], key[first], np.add.reduceat(value, first)


def _addend(source: str, table: pa.Table, hit: np.ndarray) -> np.ndarray:
    column = pc.fill_null(table.column(source).cast(pa.int64()), 0)
    values: np.ndarray = column.to_numpy()
    return np.asarray(values[hit])


def _pruned(
    definition: EntityDefinition,
    newest: np.ndarray,
    row: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Without tiles that no reader within READER_SLACK_MS of the newest event can ask for.

    A function of the set of events alone, so the order of arrival cannot change it.
    """
    span, tile_ms = _retention(definition)
    size, slot, index = split_key(key)
    since = newest[row] - (span + READER_SLACK_MS)[size, slot]
    keep = (size == 0) | ((index + 1) * tile_ms[size] > since)
    tiles = np.empty(int(keep.sum()), TILE)
    tiles["key"], tiles["value"] = key[keep], value[keep]
    return row[keep], tiles


def _retention(definition: EntityDefinition) -> tuple[np.ndarray, np.ndarray]:
    """Longest window per (size, slot), and each size in ms (1 for the endless one)."""
    span = np.zeros((len(TILE_SIZES_MS), len(definition.counters)), np.int64)
    for slot, counter in enumerate(definition.counters):
        for window in counter.windows:
            size = TILE_SIZES_MS.index(window.tile_ms)
            span[size, slot] = max(span[size, slot], window.span_ms)
    return span, np.maximum(np.array(TILE_SIZES_MS, np.int64), 1)


def _add_entries(definition: EntityDefinition, rows: Rows, row: np.ndarray, batch: Batch) -> None:
    of_row, entries, texts = [rows.entry_row], [rows.entry], [rows.text]
    for place, feature in enumerate(definition.lists):
        valid = batch.table.column(feature.source).is_valid().to_numpy()
        hit = of_kinds(batch.kind, feature.kinds) & valid
        text = batch.table.column(feature.source).filter(pa.array(hit)).cast(pa.large_binary())
        added = np.empty(int(hit.sum()), ENTRY)
        added["time"], added["hash"] = batch.time[hit], batch.hash[hit]
        added["list"], added["kind"] = place, batch.kind[hit]
        added["length"] = pc.binary_length(text).to_numpy()
        of_row.append(row[hit])
        entries.append(added)
        texts.extend(text.chunks)
    if not definition.lists:
        return
    rows_of, entry = np.concatenate(of_row), np.concatenate(entries)
    if len(rows_of) == len(rows.entry):
        return
    group = rows_of * len(definition.lists) + entry["list"]
    key = newest_first_key(group, entry["time"])
    order = merged_order(key[: len(rows.entry)], key[len(rows.entry) :])
    order = ties_by_falling_hash(order, key, entry["hash"])
    limit = np.array([feature.n for feature in definition.lists])
    order = order[rank(group[order]) < limit[entry["list"][order]]]
    rows.entry_row, rows.entry = rows_of[order], entry[order]
    rows.text = pa.concat_arrays(texts).take(pa.array(order))


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
