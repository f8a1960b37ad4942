"""Merges the parts of one row with its new events, compiled: tiles, lists, recent ids.

Knows a row's sorted parts as bytes. Does not know rows as a whole (`features.kernels.fold`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.kernels.fold_inputs import Events, Rules
from features.kernels.layout import (
    ENTRY_BYTES,
    HEAD_BYTES,
    NARROW_TILE_BYTES,
    RECENT_BYTES,
    SOURCE_OFFSET_BYTES,
    TILE_BYTES,
)
from features.kernels.packing import copied
from features.kernels.tile_keys import index_part, split_one
from streams.kernels.arrays import MutableInt64s, MutableInt64Table, MutableUint64s, Uint8s, Uint64s
from streams.kernels.compile import borrowing
from streams.kernels.raw import put_word, short_at, signed, word_at

_HEAD_WORDS, _SOURCE_WORDS = HEAD_BYTES // 8, SOURCE_OFFSET_BYTES // 8
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)
_NO_KEY = np.uint64(2**64 - 1)
_LIST, _KIND, _LENGTH = 16, 17, 18  # where they lie in an entry


class OldRow(NamedTuple):
    """A row as it is stored; its counts are 0 where there is none."""

    data: Uint8s  # of many rows
    words: Uint64s  # this row's bytes, except up to 7 at its end
    at: int  # where the row begins in `data`
    source_offsets: int
    tiles: int
    wide_tiles: int
    entries: int
    recent: int
    text_bytes: int
    newest_ms: int
    erased_ms: int


class Scratch(NamedTuple):
    """Memory that every row of a fold uses in turn."""

    table: MutableInt64s  # events by hash of their id, across all rows
    fresh: MutableInt64s  # the row's events that count
    keys: MutableUint64s  # of the events' own tiles, ascending
    sums: MutableInt64s  # of the events' own tiles
    wide: MutableUint64s  # the merged wide tiles: key, value
    best: MutableInt64s  # events, newest first
    runs: MutableInt64Table  # texts to copy: 0 of the old row or 1 of the events, place, bytes


@borrowing
def first_tile_word(row: OldRow) -> int:
    return _HEAD_WORDS + _SOURCE_WORDS * row.source_offsets


@borrowing
def entries_at(row: OldRow) -> int:
    """Where the entries begin in the row's data."""
    tiles = NARROW_TILE_BYTES * row.tiles + TILE_BYTES * row.wide_tiles
    return row.at + HEAD_BYTES + SOURCE_OFFSET_BYTES * row.source_offsets + tiles


@borrowing
def recent_at(row: OldRow) -> int:
    """Where the recent ids begin in the row's data."""
    return entries_at(row) + ENTRY_BYTES * row.entries


@borrowing
def text_at(row: OldRow) -> int:
    """Where the entries' text begins in the row's data."""
    return recent_at(row) + RECENT_BYTES * row.recent


@borrowing
def add_tiles(events: Events, rules: Rules, scratch: Scratch, n: int) -> int:
    """The tiles of the n fresh events, ascending, to `keys` and `sums`; how many there are."""
    fresh, time, kind, addend = scratch.fresh, events.time, events.kind, events.addend
    count = 0
    for i in range(n):
        e = fresh[i]
        for rule in range(rules.first[kind[e]], rules.first[kind[e] + 1]):
            key = rules.key[rule]
            if rules.tile_ms[rule]:
                key |= index_part(np.uint64(time[e] // rules.tile_ms[rule]))
            count = _add(scratch.keys, scratch.sums, count, key, addend[rules.source[rule], e])
    return count


@borrowing
def _add(keys: np.ndarray, sums: np.ndarray, n: int, key: np.uint64, value: int) -> int:
    """Adds to the sum of `key` among the first n ascending keys; how many there are then."""
    low, high = 0, n
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    if low < n and keys[low] == key:
        sums[low] += value
        return n
    for place in range(n, low, -1):
        keys[place], sums[place] = keys[place - 1], sums[place - 1]
    keys[low], sums[low] = key, value
    return n + 1


@borrowing
def merged_tiles(
    old: OldRow, scratch: Scratch, n: int, newest_ms: int, rules: Rules, out: np.ndarray, to: int
) -> tuple[int, int]:
    """Old tiles and the n new ones by key: what 8 bytes hold to `out[to:]` (uint64), the others
    to `wide`; how many of each."""
    words, keys, sums, wide = old.words, scratch.keys, scratch.sums, scratch.wide
    at = first_tile_word(old)
    stop = at + old.tiles
    wide_at, wide_stop = stop, stop + 2 * old.wide_tiles
    new = narrow_out = wide_out = 0
    while True:
        old_key = words[at] >> _HALF if at < stop else _NO_KEY
        wide_key = words[wide_at] if wide_at < wide_stop else _NO_KEY
        new_key = keys[new] if new < n else _NO_KEY
        key = min(old_key, wide_key, new_key)
        if key == _NO_KEY:
            break
        total = np.int64(0)
        if old_key == key:
            total += np.int64(words[at] & _LOW)
            at += 1
        if wide_key == key:
            total += np.int64(words[wide_at + 1])
            wide_at += 2
        if new_key == key:
            total += sums[new]
            new += 1
        if _expired(signed(key), newest_ms, rules):
            continue
        if key <= _LOW and 0 <= total <= np.int64(_LOW):
            out[to + narrow_out] = key << _HALF | np.uint64(total)
            narrow_out += 1
        else:
            wide[2 * wide_out], wide[2 * wide_out + 1] = key, np.uint64(total)
            wide_out += 1
    return narrow_out, wide_out


@borrowing
def _expired(key: int, newest_ms: int, rules: Rules) -> bool:
    size, slot, index = split_one(key)
    end = (index + 1) * rules.size_ms[size]
    return bool(size and end <= newest_ms - rules.keep_ms[size, slot])


@borrowing
def newest_events(events: Events, scratch: Scratch, n: int, limit: int) -> int:
    """The `limit` newest of the n fresh events to `best`, by falling time and hash; how many
    there are."""
    count = 0
    for i in range(n - 1, -1, -1):
        count = _insert(scratch.best, count, limit, scratch.fresh[i], events)
    return count


@borrowing
def _insert(best: np.ndarray, count: int, limit: int, e: int, events: Events) -> int:
    """Puts the event before those in `best` that it does not come after."""
    place = count
    while place and not _newer(events, best[place - 1], e):
        place -= 1
    if place == limit:
        return count
    count = min(count + 1, limit)
    for move in range(count - 1, place, -1):
        best[move] = best[move - 1]
    best[place] = e
    return count


@borrowing
def _newer(events: Events, a: int, b: int) -> bool:
    time, hashes = events.time, events.hash
    return bool(time[a] > time[b] or (time[a] == time[b] and hashes[a] > hashes[b]))


@borrowing
def merged_lists(
    old: OldRow, events: Events, rules: Rules, scratch: Scratch, n: int, out: np.ndarray, to: int
) -> tuple[int, int, int]:
    """Writes every list newest first, of old entries and the n fresh events.

    Where they end, how many they are, and how many `runs` say where their text lies.
    """
    data, best, runs = old.data, scratch.best, scratch.runs
    begin, ran, at, text = to, 0, entries_at(old), text_at(old)
    stop, text_stop = at + ENTRY_BYTES * old.entries, text + old.text_bytes
    for chosen in range(len(rules.list_keeps)):
        limit = rules.list_keeps[chosen]
        count = _newest_of_list(events, rules, scratch, n, chosen)
        new = kept = 0
        while kept < limit:
            has_old = at < stop and data[at + _LIST] == chosen
            if new < count and not (has_old and _not_after(data, at, events, best[new])):
                e = best[new]
                to = _put_entry(out, to, events, e, chosen)
                place, size = events.text_start[chosen, e], events.text_bytes[chosen, e]
                ran = _run(runs, ran, 1, place, size)
                new += 1
            elif has_old:
                size = min(signed(short_at(data, at + _LENGTH)), text_stop - text)
                ran = _run(runs, ran, 0, text, size)
                to, at = copied(out, to, data, at, ENTRY_BYTES)
                text += size
            else:
                break
            kept += 1
        while at < stop and data[at + _LIST] == chosen:
            text += min(signed(short_at(data, at + _LENGTH)), text_stop - text)
            at += ENTRY_BYTES
    return to, (to - begin) // ENTRY_BYTES, ran


@borrowing
def _newest_of_list(events: Events, rules: Rules, scratch: Scratch, n: int, chosen: int) -> int:
    """The newest of the n fresh events that the list takes, to `best`; how many there are."""
    count, limit = 0, rules.list_keeps[chosen]
    for i in range(n - 1, -1, -1):
        e = scratch.fresh[i]
        if rules.list_takes[chosen, events.kind[e]] and events.text_bytes[chosen, e] >= 0:
            count = _insert(scratch.best, count, limit, e, events)
    return count


@borrowing
def _not_after(data: np.ndarray, at: int, events: Events, e: int) -> bool:
    """Whether an old part (time, then hash) stays before the event."""
    when = signed(word_at(data, at))
    later = when > events.time[e]
    return bool(later or (when == events.time[e] and word_at(data, at + 8) >= events.hash[e]))


@borrowing
def _run(runs: np.ndarray, ran: int, source: int, place: int, size: int) -> int:
    """One more piece of text, joined to the last one where it follows it; how many there are."""
    if ran and runs[ran - 1, 0] == source and runs[ran - 1, 1] + runs[ran - 1, 2] == place:
        runs[ran - 1, 2] += size
        return ran
    runs[ran, 0], runs[ran, 1], runs[ran, 2] = source, place, size
    return ran + 1


@borrowing
def merged_recent(
    old: OldRow, events: Events, scratch: Scratch, n: int, limit: int, out: np.ndarray, to: int
) -> tuple[int, int]:
    """Writes the newest `limit` of old ids and the n events in `best`; where they end and how
    many they are."""
    data, best, at = old.data, scratch.best, recent_at(old)
    new = kept = taken = 0
    while new < n and kept < limit:
        if taken < old.recent and _not_after(data, at, events, best[new]):
            to, at = copied(out, to, data, at, RECENT_BYTES)
            taken += 1
        else:
            put_word(out, to, np.uint64(events.time[best[new]]))
            put_word(out, to + 8, events.hash[best[new]])
            to, new = to + RECENT_BYTES, new + 1
        kept += 1
    rest = min(limit - kept, old.recent - taken)
    to, _ = copied(out, to, data, at, RECENT_BYTES * rest)
    return to, kept + rest


@borrowing
def _put_entry(out: np.ndarray, to: int, events: Events, e: int, chosen: int) -> int:
    put_word(out, to, np.uint64(events.time[e]))
    put_word(out, to + 8, events.hash[e])
    out[to + _LIST], out[to + _KIND] = chosen, events.kind[e]
    for place in range(4):
        out[to + _LENGTH + place] = events.text_bytes[chosen, e] >> 8 * place & 0xFF
    return to + ENTRY_BYTES
