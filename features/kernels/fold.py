"""The loop of a fold, compiled: a row's bytes and its new events in, the new row's bytes out.

Knows the layout of a row's bytes (`features.kernels.layout` tells it) and how an event adds to a row,
as tables of numbers. Does not know declarations (`features.rows.aggregate` makes the tables). Each row
is read once and written once, part by part, so that nothing is kept of rows in between: flat
arrays of every part of every row cost more than merging them. Importing takes a second, so
readers do not; `python -m features.kernels.fold` fills the cache of compiled code, once.

All arrays come read-only and contiguous (`features.rows.byte_slices.given`), so that each function is
compiled for one type. The merging of each part is in `features.kernels.merge`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]

from features.kernels.merge import (
    ENTRY_BYTES,
    add_tiles,
    merged_lists,
    merged_recent,
    merged_tiles,
    newest_events,
)
from features.kernels.packing import copied, xxh64
from streams.kernels.raw import prefetch, put_word, word_at

_compiled: Any = njit(cache=True, nogil=True)
_count: Any = np.int64

LANES_KEPT = 8  # epochs and partitions that a row remembers; a zombie is of the last few
SAME_EVENT_MS = 86_400_000  # an id used again further apart in event time is another event
_AHEAD, _LINE = 4, 64  # rows whose memory is asked for while another is folded; bytes
_VERSION, _HEAD, _LANE, _DIGEST = np.uint64(2), 48, 24, 8
_HALF, _QUARTER = np.uint64(32), np.uint64(16)
_LOW, _SHORT = np.uint64(2**32 - 1), np.uint64(2**16 - 1)


@_compiled  # type: ignore[untyped-decorator]
def fold_rows(
    cached: np.ndarray, read: np.ndarray, start: np.ndarray, size: np.ndarray,
    picked: np.ndarray, first: np.ndarray, event: np.ndarray,
    row: np.ndarray, time: np.ndarray, kind: np.ndarray, hashes: np.ndarray, offset: np.ndarray,
    origin: np.ndarray, epoch: Any, generation: Any, fingerprint: Any, recent: int,
    value: np.ndarray, rule_first: np.ndarray, rule_key: np.ndarray, rule_ms: np.ndarray,
    rule_value: np.ndarray, keep_ms: np.ndarray, size_ms: np.ndarray,
    listed: np.ndarray, limit: np.ndarray,
    length: np.ndarray, text_at: np.ndarray, text: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:  # fmt: skip
    """The rows that change: their places in `picked`, bytes (uint8, int64 offsets), digests of
    what they were made of (uint64, 0 for none), newest event times (ms); and how many of all
    rows are of this generation and of another fingerprint.

    Row `picked[k]` lies as `size[k]` bytes at `start[k]` of `cached` and, behind its end, of
    `read`; its events are `event[first[r]:first[r + 1]]`. `offset` (int64 [M]) is of the message
    that brought an event, `origin` (uint64 [M]) its partition, one for all of a row's. Kind k
    adds by rules `rule_first[k]` to `rule_first[k + 1]`: key but for the index, tile size in ms
    (0: endless), row of `value`. Tiles of size s and slot c that end `keep_ms[s, c]` before the
    row's newest event are left out. List l takes `listed[l, k]` where `length[l]` (bytes, at
    `text_at[l]` of `text`) is not negative, and keeps `limit[l]`.
    """
    most, longest, room = _bounds(picked, first, event, kind, rule_first, length, size)
    out, offsets = np.empty(room, np.uint8), np.zeros(len(picked) + 1, np.int64)
    changed, newest = np.empty(len(picked), np.int64), np.empty(len(picked), np.int64)
    before, fresh = np.empty(len(picked), np.uint64), np.empty(max(1, most), np.int64)
    table = np.zeros(_table_size(len(event)), np.int64)
    keys, sums = _own_tiles(most * _most_rules(rule_first))
    wide = np.empty(2 * len(keys) + longest // 8 + 2, np.uint64)
    best = np.empty(max(recent, limit.sum()) + 1, np.int64)
    runs = np.empty((2 * limit.sum() + 2, 3), np.int64)
    done = foreign = 0
    for k in range(len(picked)):
        r = picked[k]
        _ask_ahead(cached, start, size, k + _AHEAD)
        old, at = (cached, start[k]) if start[k] < len(cached) else (read, start[k] - len(cached))
        words, is_foreign = _row_words(old, at, size[k], generation, fingerprint)
        foreign += is_foreign
        if first[r] == first[r + 1]:
            continue
        erased = _count(words[5]) if len(words) else 0
        words = words if len(words) and words[1] & _LOW == generation else words[:0]
        partition = origin[event[first[r]]]
        n = _fresh(
            words, old, at, epoch, partition, erased,
            first[r], first[r + 1], event, row, time, hashes, offset, table, fresh,
        )  # fmt: skip
        if not n:
            continue
        stop, newest[done] = _folded_row(
            words, old, at, out, offsets[done], fresh, n, time, kind, hashes, offset,
            epoch, partition, generation, fingerprint, erased, recent,
            value, rule_first, rule_key, rule_ms, rule_value, keep_ms, size_ms,
            listed, limit, length, text_at, text, keys, sums, wide, best, runs,
        )  # fmt: skip
        changed[done], offsets[done + 1] = k, stop
        before[done] = word_at(old, at + size[k] - _DIGEST) if size[k] >= _DIGEST else np.uint64(0)
        done += 1
    bounds = offsets[: done + 1]
    return changed[:done], out[: bounds[done]], bounds, before[:done], newest[:done], foreign


@_compiled  # type: ignore[untyped-decorator]
def _own_tiles(room: int) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(room, np.uint64), np.empty(room, np.int64)


@_compiled  # type: ignore[untyped-decorator]
def _ask_ahead(cached: np.ndarray, start: np.ndarray, size: np.ndarray, k: int) -> None:
    if k < len(start) and start[k] < len(cached):
        for line in range(start[k], start[k] + size[k], _LINE):
            prefetch(cached, line)


@_compiled  # type: ignore[untyped-decorator]
def _bounds(
    picked: np.ndarray, first: np.ndarray, event: np.ndarray, kind: np.ndarray,
    rule_first: np.ndarray, length: np.ndarray, size: np.ndarray,
) -> tuple[int, int, int]:  # fmt: skip
    """The most events of one row, the longest row's bytes, and what all new ones take at most."""
    most, longest, room = 0, 0, 0
    for k in range(len(picked)):
        r = picked[k]
        room += size[k] + _HEAD + _LANE + _DIGEST
        most, longest = max(most, first[r + 1] - first[r]), max(longest, size[k])
        for i in range(first[r], first[r + 1]):
            e = event[i]
            room += 16 + 16 * (rule_first[kind[e] + 1] - rule_first[kind[e]])
            for chosen in range(len(length)):
                room += ENTRY_BYTES + max(0, length[chosen, e])
    return most, longest, room


@_compiled  # type: ignore[untyped-decorator]
def _most_rules(rule_first: np.ndarray) -> int:
    most = 0
    for k in range(len(rule_first) - 1):
        most = max(most, rule_first[k + 1] - rule_first[k])
    return most


@_compiled  # type: ignore[untyped-decorator]
def _table_size(events: int) -> int:
    size = 1
    while size < 2 * events:
        size *= 2
    return size


@_compiled  # type: ignore[untyped-decorator]
def _row_words(
    old: np.ndarray, at: int, size: int, generation: Any, fingerprint: Any
) -> tuple[np.ndarray, int]:
    """A whole row's head and what of it lies in words behind it, nothing for other bytes; and
    1 for a row of this generation and another fingerprint."""
    words = old[at : at + max(0, size) // 8 * 8].view(np.uint64)
    if size < _HEAD + _DIGEST or words[0] & _SHORT != _VERSION:
        return words[:0], 0
    lanes, tiles, wide, entries, recent, text, _ = _counts(words)
    parts = _LANE * lanes + 8 * tiles + 16 * (wide + recent) + ENTRY_BYTES * entries + text
    if _HEAD + parts + _DIGEST != size:
        return words[:0], 0
    foreign = words[1] & _LOW == generation and words[0] >> _HALF != fingerprint
    return words, int(foreign)


@_compiled  # type: ignore[untyped-decorator]
def _fresh(
    words: np.ndarray, old: np.ndarray, at: int, epoch: Any, partition: Any, erased: int,
    begin: int, end: int, event: np.ndarray, row: np.ndarray, time: np.ndarray,
    hashes: np.ndarray, offset: np.ndarray, table: np.ndarray, fresh: np.ndarray,
) -> int:  # fmt: skip
    """How many of the row's events count, their places in `fresh`: those of messages that the
    row has not seen, after its erasure, and neither among its recent ids nor earlier here."""
    lanes, tiles, wides, entries, recent, _, _ = _counts(words)
    seen = _seen_until(words, lanes, epoch, partition)
    ids = at + _HEAD + _LANE * lanes + 8 * tiles + 16 * wides + ENTRY_BYTES * entries
    n = 0
    for i in range(begin, end):
        e = event[i]
        if offset[e] <= seen or time[e] <= erased:
            continue
        known, when = False, np.int64(0)
        for j in range(recent - 1, -1, -1):
            if word_at(old, ids + 16 * j + 8) == hashes[e]:
                known, when = True, np.int64(word_at(old, ids + 16 * j))
                break
        if end - begin > 1:
            earlier = _earlier(table, hashes, row, e)
            if earlier >= 0:
                known, when = True, time[earlier]
        if not (known and abs(time[e] - when) <= SAME_EVENT_MS):
            fresh[n] = e
            n += 1
    return n


@_compiled  # type: ignore[untyped-decorator]
def _earlier(table: np.ndarray, hashes: np.ndarray, row: np.ndarray, e: int) -> int:
    """The last event before `e` of the same id and row, -1 for none; `e` takes its place."""
    place = np.int64(hashes[e] & np.uint64(len(table) - 1))
    while table[place]:
        other: int = table[place] - 1
        if hashes[other] == hashes[e] and row[other] == row[e]:
            table[place] = e + 1
            return other
        place = (place + 1) & (len(table) - 1)
    table[place] = e + 1
    return -1


@_compiled  # type: ignore[untyped-decorator]
def _seen_until(words: np.ndarray, lanes: int, epoch: Any, partition: Any) -> int:
    """The last offset of this lane that the row has counted, -1 for none."""
    for lane in range(lanes):
        if words[6 + 3 * lane] == epoch and words[7 + 3 * lane] == partition:
            offset: int = _count(words[8 + 3 * lane])
            return offset
    return -1


@_compiled  # type: ignore[untyped-decorator]
def _counts(words: np.ndarray) -> tuple[int, int, int, int, int, int, int]:
    """A row's lanes, tiles, wide tiles, entries, recent ids, text's bytes, newest event's time."""
    if not len(words):
        return 0, 0, 0, 0, 0, 0, 0
    lanes, tiles = _count(words[0] >> _QUARTER & _SHORT), _count(words[1] >> _HALF)
    entries, recents = _count(words[2] & _LOW), _count(words[2] >> _HALF)
    text_bytes, wides = _count(words[3] & _LOW), _count(words[3] >> _HALF)
    return lanes, tiles, wides, entries, recents, text_bytes, _count(words[4])


@_compiled  # type: ignore[untyped-decorator]
def _folded_row(
    words: np.ndarray, old: np.ndarray, at: int, out: np.ndarray, to: int,
    fresh: np.ndarray, n: int, time: np.ndarray, kind: np.ndarray, hashes: np.ndarray,
    offset: np.ndarray, epoch: Any, partition: Any, generation: Any, fingerprint: Any,
    erased: int, recent: int, value: np.ndarray, rule_first: np.ndarray, rule_key: np.ndarray,
    rule_ms: np.ndarray, rule_value: np.ndarray, keep_ms: np.ndarray, size_ms: np.ndarray,
    listed: np.ndarray, limit: np.ndarray, length: np.ndarray, text_at: np.ndarray,
    text: np.ndarray, keys: np.ndarray, sums: np.ndarray, wide: np.ndarray, best: np.ndarray,
    runs: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Writes the row to `out[to:]`; where it ends, and its newest event's time (ms)."""
    lanes, tiles, wides, entries, recents, text_bytes, newest = _counts(words)
    entries_at = _HEAD + _LANE * lanes + 8 * tiles + 16 * wides
    recent_at = entries_at + ENTRY_BYTES * entries
    until = _count(-1)
    for i in range(n):
        newest, until = max(newest, time[fresh[i]]), max(until, offset[fresh[i]])
    made = out[to : to + (len(out) - to) // 8 * 8].view(np.uint64)
    lanes_out = _advanced(words, lanes, epoch, partition, until, made)
    added = add_tiles(
        fresh, n, time, kind, value, rule_first, rule_key, rule_ms, rule_value, keys, sums
    )
    place = 6 + 3 * lanes_out
    tiles_out, wides_out = merged_tiles(
        words,
        6 + 3 * lanes,
        tiles,
        wides,
        keys,
        sums,
        added,
        newest,
        keep_ms,
        size_ms,
        made,
        place,
        wide,
    )
    place += tiles_out
    for i in range(2 * wides_out):
        made[place + i] = wide[i]
    stop = to + 8 * (place + 2 * wides_out)
    stop, entries_out, ran = merged_lists(
        old, at + entries_at, entries, at + recent_at + 16 * recents, text_bytes, out, stop, runs,
        fresh, n, time, hashes, kind, listed, limit, length, text_at, best,
    )  # fmt: skip
    count = newest_events(fresh, n, recent, best, time, hashes)
    stop, recents_out = merged_recent(
        old, at + recent_at, recents, best, count, recent, time, hashes, out, stop
    )
    text_from = stop
    for i in range(ran):
        source = text if runs[i, 0] else old
        stop, _ = copied(out, stop, source, runs[i, 1], runs[i, 2])
    made[0] = _VERSION | np.uint64(lanes_out) << _QUARTER | fingerprint << _HALF
    made[1] = generation | np.uint64(tiles_out) << _HALF
    made[2] = np.uint64(entries_out) | np.uint64(recents_out) << _HALF
    made[3] = np.uint64(stop - text_from) | np.uint64(wides_out) << _HALF
    made[4], made[5] = np.uint64(newest), np.uint64(erased)
    return _sealed(out, to, stop), newest


@_compiled  # type: ignore[untyped-decorator]
def _sealed(out: np.ndarray, to: int, stop: int) -> int:
    """Writes the digest behind the row; where that ends."""
    put_word(out, stop, xxh64(out, to, stop))
    return stop + _DIGEST


@_compiled  # type: ignore[untyped-decorator]
def _advanced(
    words: np.ndarray, lanes: int, epoch: Any, partition: Any, until: int, made: np.ndarray
) -> int:
    """Writes the lanes with this one last, at the last offset that the row has counted, and
    without the oldest; how many there are."""
    others = 0
    for lane in range(lanes):
        same = words[6 + 3 * lane] == epoch and words[7 + 3 * lane] == partition
        others += not same
    skipped, kept = max(0, others + 1 - LANES_KEPT), 0
    for lane in range(lanes):
        if words[6 + 3 * lane] == epoch and words[7 + 3 * lane] == partition:
            continue
        if skipped:
            skipped -= 1
            continue
        for part in range(3):
            made[6 + 3 * kept + part] = words[6 + 3 * lane + part]
        kept += 1
    made[6 + 3 * kept], made[7 + 3 * kept] = epoch, partition
    made[8 + 3 * kept] = np.uint64(until)
    return kept + 1


@_compiled  # type: ignore[untyped-decorator]
def by_row(row: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(first, event): row r's events are `event[first[r]:first[r + 1]]`, in their order."""
    first = np.zeros(rows + 1, np.int64)
    for e in range(len(row)):
        first[row[e] + 1] += 1
    for r in range(rows):
        first[r + 1] += first[r]
    after, event = first[:-1].copy(), np.empty(len(row), np.int64)
    for e in range(len(row)):
        event[after[row[e]]] = e
        after[row[e]] += 1
    return first, event


def warm() -> None:
    """Compiles what a fold and its write call (`features.kernels.packing` too), for the types that
    they give, or finds it in the cache."""
    from features.definitions import DEFINITIONS
    from features.kernels.layout import tombstone
    from features.online.compare_and_set import Swap
    from features.online.feast_keys import RowFormat
    from features.online.row_cache import RowCache
    from features.rows.aggregate import fold, group
    from features.rows.byte_slices import Spans
    from streams.bus.contract import Stamp
    from streams.contract.schema import EVENT_SCHEMA

    user, key, times = DEFINITIONS["user"], np.ones(1, np.uint64), np.zeros(1, np.int64)
    batch = group(user, EVENT_SCHEMA.empty_table())
    fold(user, Spans.of([]), batch, Stamp("", 0, 0))
    rows, cache = Spans.of([tombstone(1, 1, 1)]), RowCache(1)
    cache.put("user", key, key, rows)
    cache.find("user", key, key)
    cache._rows["user"]._compact(1)
    layout, ids = RowFormat(user, ""), Spans.of([b"u"])
    layout.packed_sets(ids, rows, times)
    list(Swap(layout, b"", 0).calls(ids, key, rows, times, 1))


if __name__ == "__main__":
    from pathlib import Path

    # A cached function does not notice that one that it calls, in another file, has changed.
    for _name in ("fold", "merge", "packing"):
        for _stale in Path(__file__).parent.glob(f"__pycache__/{_name}.*.nb[ic]"):
            _stale.unlink()
    from features.kernels.fold import warm as _warm  # the module that folds import, not `__main__`

    _warm()
