"""The one kernel: a batch of events folded into rows, whoever brings the batch.

Knows declarations, tiles and stamps. Does not know stores: online folds, backfills and
point-in-time reads all call `fold`. Everything kept is a sum of integers, a maximum or
the top of a total order, so batches may come in any order of partitions and the values
are the same.

Guarantees, per row: a batch at or before the row's offset in its (epoch, partition)
lane changes nothing; an event among the row's recent ids is not counted again, whatever
epoch it comes under; an event at or before the row's erasure is never counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from features.definitions import TILE_SIZES_MS, EntityDefinition, Sum, kind_codes
from features.tiles import ENTRY, HEAD, LANE, RECENT, TILE, Rows, split_key, tile_key
from streams.bus import Stamp
from streams.clock import DAY_MS, HOUR_MS

LANES_KEPT = 8  # epochs and partitions that a row remembers; a zombie is of the last few
SAME_EVENT_MS = DAY_MS  # an id used again further apart in event time is another event
READER_SLACK_MS = HOUR_MS  # how far a reader's now may lie behind the row's newest event


@dataclass(frozen=True)
class Batch:
    """Events that name an entity, with `row` as the place of their id in `ids`."""

    ids: list[str]
    row: np.ndarray  # int64 [M]
    time: np.ndarray  # int64 [M], event time in ms
    kind: np.ndarray  # uint8 [M]
    hash: np.ndarray  # uint64 [M], of (user id, event id)
    table: pa.Table  # the same events, for the columns that features name

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
    table = events.filter(keep).combine_chunks()
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
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(key) for key in keys), np.uint64, len(keys))


def fold(
    definition: EntityDefinition, rows: Rows, batch: Batch, stamp: Stamp, generation: int = 0
) -> Folded:
    """Folds `batch` into `rows` (one per id of the batch, in that order).

    Rows of another generation count as empty, but for their erasure. The input rows
    are not changed.
    """
    rows = _current(rows, generation)
    lane = _lane(stamp)
    fresh = batch.where(_not_replayed(rows, lane)[batch.row])
    fresh = fresh.where(fresh.time > rows.head["erased_ms"][fresh.row])
    fresh = fresh.where(_first_time(rows, fresh))
    changed = np.unique(fresh.row)
    rows, place = _select(rows, changed, len(batch.ids))
    row = place[fresh.row]
    rows.head["generation"] = generation
    rows.head["fingerprint"] = definition.fingerprint
    np.maximum.at(rows.head["last_event_ms"], row, fresh.time)
    _add_recent(definition, rows, row, fresh)
    _add_tiles(definition, rows, row, fresh)
    _add_entries(definition, rows, row, fresh)
    _advance(rows, lane)
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


def _not_replayed(rows: Rows, lane: np.ndarray) -> np.ndarray:
    """bool [N]: the row has not yet seen this offset of this lane."""
    same = (rows.lane["epoch"] == lane["epoch"]) & (rows.lane["partition"] == lane["partition"])
    seen = same & (rows.lane["offset"] >= lane["offset"])
    fresh = np.ones(len(rows), bool)
    fresh[rows.lane_row[seen]] = False
    return fresh


def _first_time(rows: Rows, batch: Batch) -> np.ndarray:
    """bool [M]: neither among the row's recent ids nor earlier in this batch."""
    row = np.concatenate([rows.recent_row, batch.row])
    event = np.concatenate([rows.recent["hash"], batch.hash])
    time = np.concatenate([rows.recent["time"], batch.time])
    order = np.lexsort((np.arange(len(row)), event, row))
    row, event, time = row[order], event[order], time[order]
    again = np.zeros(len(row), bool)
    again[1:] = (row[1:] == row[:-1]) & (event[1:] == event[:-1])
    again[1:] &= np.abs(time[1:] - time[:-1]) <= SAME_EVENT_MS
    first = np.empty(len(row), bool)
    first[order] = ~again
    return first[len(rows.recent) :]


def _select(rows: Rows, changed: np.ndarray, n: int) -> tuple[Rows, np.ndarray]:
    """The changed rows alone, and int64 [n] that maps an old place to its new one."""
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
    order = np.lexsort((~recent["hash"], -recent["time"], rows_of))
    order = order[_rank(rows_of[order]) < definition.recent]
    rows.recent_row, rows.recent = rows_of[order], recent[order]


def _rank(sorted_group: np.ndarray) -> np.ndarray:
    """Each element's place within its run of equal values."""
    starts = np.ones(len(sorted_group), bool)
    starts[1:] = sorted_group[1:] != sorted_group[:-1]
    at = np.arange(len(sorted_group))
    return np.asarray(at - np.maximum.accumulate(np.where(starts, at, 0)))


def _add_tiles(definition: EntityDefinition, rows: Rows, row: np.ndarray, batch: Batch) -> None:
    of_row, keys, values = [rows.tile_row], [rows.tile["key"]], [rows.tile["value"]]
    for slot, counter in enumerate(definition.counters):
        hit = np.isin(batch.kind, kind_codes(counter.kinds))
        if not hit.any():
            continue
        value = _addend(counter.source, batch.table, hit) if isinstance(counter, Sum) else None
        for tile_ms in {window.tile_ms for window in counter.windows}:
            time = batch.time[hit]
            index = time // tile_ms if tile_ms else np.zeros_like(time)
            of_row.append(row[hit])
            keys.append(tile_key(TILE_SIZES_MS.index(tile_ms), slot, index))
            values.append(np.ones(len(time), np.int64) if value is None else value)
    merged = _merge(np.concatenate(of_row), np.concatenate(keys), np.concatenate(values))
    rows.tile_row, rows.tile = _pruned(definition, rows.head["last_event_ms"], *merged)


def _addend(source: str, table: pa.Table, hit: np.ndarray) -> np.ndarray:
    column = pc.fill_null(table.column(source).cast(pa.int64()), 0)
    values: np.ndarray = column.to_numpy()
    return np.asarray(values[hit])


def _merge(
    row: np.ndarray, key: np.ndarray, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of equal (row, key) added up, ordered by both."""
    if len(row) == 0:
        return row, key, value
    order = np.lexsort((key, row))
    row, key, value = row[order], key[order], value[order]
    starts = np.ones(len(row), bool)
    starts[1:] = (row[1:] != row[:-1]) | (key[1:] != key[:-1])
    first = np.flatnonzero(starts)
    return row[first], key[first], np.add.reduceat(value, first)


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
    floor = (newest[row] - span[size, slot] - READER_SLACK_MS) // tile_ms[size]
    keep = (size == 0) | (index >= floor)
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
        hit = np.isin(batch.kind, kind_codes(feature.kinds)) & valid
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
    order = np.lexsort((~entry["hash"], -entry["time"], entry["list"], rows_of))
    limit = np.array([feature.n for feature in definition.lists])
    group = rows_of * len(definition.lists) + entry["list"]
    order = order[_rank(group[order]) < limit[entry["list"][order]]]
    rows.entry_row, rows.entry = rows_of[order], entry[order]
    rows.text = pa.concat_arrays(texts).take(pa.array(order))


def _advance(rows: Rows, lane: np.ndarray) -> None:
    """Puts this batch's lane last in every row and forgets the oldest lanes."""
    same = (rows.lane["epoch"] == lane["epoch"]) & (rows.lane["partition"] == lane["partition"])
    of_row = np.concatenate([rows.lane_row[~same], np.arange(len(rows))])
    lanes = np.concatenate([rows.lane[~same], np.repeat(lane, len(rows))])
    order = np.argsort(of_row, kind="stable")
    of_row, lanes = of_row[order], lanes[order]
    from_end = _rank(of_row[::-1])[::-1]
    rows.lane_row, rows.lane = of_row[from_end < LANES_KEPT], lanes[from_end < LANES_KEPT]
