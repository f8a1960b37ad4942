"""Merging the parts of one row with its new events, compiled: tiles, lists, recent ids.

Knows a row's sorted parts as bytes. Does not know rows as a whole (`features.kernels.fold`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]

from features.kernels.packing import copied
from streams.kernels.raw import put_word, short_at, word_at

_compiled: Any = njit(cache=True, nogil=True)
_count: Any = np.int64

ENTRY_BYTES, _RECENT_BYTES = 22, 16
# A tile key's parts, as `features.kernels.layout.split_key` tells them.
_INDEX, _SLOT, _SIZE, _HIGH = np.uint64(25), np.uint64(5), np.uint64(30), np.uint64(15)
_LOW_INDEX, _LOW_SLOT, _HIGH_INDEX = np.uint64(2**25 - 1), np.uint64(31), np.uint64(2**15 - 1)
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)
_NO_KEY = np.uint64(2**64 - 1)


@_compiled  # type: ignore[untyped-decorator]
def add_tiles(
    fresh: np.ndarray, n: int, time: np.ndarray, kind: np.ndarray, value: np.ndarray,
    rule_first: np.ndarray, rule_key: np.ndarray, rule_ms: np.ndarray, rule_value: np.ndarray,
    keys: np.ndarray, sums: np.ndarray,
) -> int:  # fmt: skip
    """The events' own tiles, ascending, to `keys` and `sums`; how many there are."""
    count = 0
    for i in range(n):
        e = fresh[i]
        for rule in range(rule_first[kind[e]], rule_first[kind[e] + 1]):
            key = rule_key[rule]
            if rule_ms[rule]:
                key |= _index(np.uint64(time[e] // rule_ms[rule]))
            count = _add(keys, sums, count, key, value[rule_value[rule], e])
    return count


@_compiled  # type: ignore[untyped-decorator]
def _index(index: np.uint64) -> Any:
    """The index's part of a key."""
    return index & _LOW_INDEX | (index >> _INDEX & _HIGH_INDEX) << _HALF


@_compiled  # type: ignore[untyped-decorator]
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


@_compiled  # type: ignore[untyped-decorator]
def merged_tiles(
    words: np.ndarray, at: int, tiles: int, wides: int,
    keys: np.ndarray, sums: np.ndarray, n: int, newest: int,
    keep_ms: np.ndarray, size_ms: np.ndarray, made: np.ndarray, to: int, wide: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Old tiles (`words[at:]`: narrow ones, then wide ones) and new ones by key: what 8 bytes
    hold to `made[to:]`, the others to `wide`; how many of each."""
    stop = at + tiles
    wide_at, wide_stop = stop, stop + 2 * wides
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
        if _expired(key, newest, keep_ms, size_ms):
            continue
        if key <= _LOW and 0 <= total <= np.int64(_LOW):
            made[to + narrow_out] = key << _HALF | np.uint64(total)
            narrow_out += 1
        else:
            wide[2 * wide_out], wide[2 * wide_out + 1] = key, np.uint64(total)
            wide_out += 1
    return narrow_out, wide_out


@_compiled  # type: ignore[untyped-decorator]
def _expired(key: np.uint64, newest: int, keep_ms: np.ndarray, size_ms: np.ndarray) -> bool:
    size, high = np.int64(key >> _SIZE & np.uint64(3)), key >> _HALF
    index = np.int64(key & _LOW_INDEX | (high & _HIGH_INDEX) << _INDEX)
    slot = np.int64(key >> _INDEX & _LOW_SLOT | high >> _HIGH << _SLOT)
    end = (index + 1) * size_ms[size]
    return bool(size and end <= newest - keep_ms[size, slot])


@_compiled  # type: ignore[untyped-decorator]
def newest_events(
    fresh: np.ndarray, n: int, limit: int, best: np.ndarray, time: np.ndarray, hashes: np.ndarray
) -> int:
    """The `limit` newest events to `best`, by falling time and hash; how many there are."""
    count = 0
    for i in range(n - 1, -1, -1):
        count = _insert(best, 0, count, limit, fresh[i], time, hashes)
    return count


@_compiled  # type: ignore[untyped-decorator]
def _insert(
    best: np.ndarray, at: int, count: int, limit: int, e: int, time: np.ndarray, hashes: np.ndarray
) -> int:
    """Puts the event before those in `best[at:]` that it does not come after."""
    place = count
    while place and not _newer(time, hashes, best[at + place - 1], e):
        place -= 1
    if place == limit:
        return count
    count = min(count + 1, limit)
    for move in range(at + count - 1, at + place, -1):
        best[move] = best[move - 1]
    best[at + place] = e
    return count


@_compiled  # type: ignore[untyped-decorator]
def _newer(time: np.ndarray, hashes: np.ndarray, a: int, b: int) -> bool:
    return bool(time[a] > time[b] or (time[a] == time[b] and hashes[a] > hashes[b]))


@_compiled  # type: ignore[untyped-decorator]
def merged_lists(
    old: np.ndarray, at: int, entries: int, text: int, text_bytes: int, out: np.ndarray, to: int,
    runs: np.ndarray, fresh: np.ndarray, n: int, time: np.ndarray, hashes: np.ndarray,
    kind: np.ndarray, listed: np.ndarray, limit: np.ndarray,
    length: np.ndarray, text_at: np.ndarray, best: np.ndarray,
) -> tuple[int, int, int]:  # fmt: skip
    """Writes every list newest first, old entries (at `at`, their text at `text`) and new ones.

    Where they end, how many they are, and how many `runs` tell where their text lies: 0 in
    `old` or 1 with the events, the place, and bytes.
    """
    begin, ran, stop, text_stop = to, 0, at + ENTRY_BYTES * entries, text + text_bytes
    for chosen in range(len(limit)):
        count = 0
        for i in range(n - 1, -1, -1):
            e = fresh[i]
            if listed[chosen, kind[e]] and length[chosen, e] >= 0:
                count = _insert(best, 0, count, limit[chosen], e, time, hashes)
        new = kept = 0
        while kept < limit[chosen]:
            has_old = at < stop and old[at + 16] == chosen
            if new < count and not (has_old and _not_after(old, at, time, hashes, best[new])):
                e = best[new]
                to = _put_entry(out, to, time[e], hashes[e], chosen, kind[e], length[chosen, e])
                ran = _run(runs, ran, 1, text_at[chosen, e], length[chosen, e])
                new += 1
            elif has_old:
                size = min(_count(short_at(old, at + 18)), text_stop - text)
                ran = _run(runs, ran, 0, text, size)
                to, at = copied(out, to, old, at, ENTRY_BYTES)
                text += size
            else:
                break
            kept += 1
        while at < stop and old[at + 16] == chosen:
            text += min(_count(short_at(old, at + 18)), text_stop - text)
            at += ENTRY_BYTES
    return to, (to - begin) // ENTRY_BYTES, ran


@_compiled  # type: ignore[untyped-decorator]
def _not_after(old: np.ndarray, at: int, time: np.ndarray, hashes: np.ndarray, e: int) -> bool:
    """Whether an old part (time, then hash) stays before the event."""
    when = np.int64(word_at(old, at))
    return bool(when > time[e] or (when == time[e] and word_at(old, at + 8) >= hashes[e]))


@_compiled  # type: ignore[untyped-decorator]
def _run(runs: np.ndarray, ran: int, source: int, place: int, size: int) -> int:
    """One more span of text, joined to the last one where it follows it; how many there are."""
    if ran and runs[ran - 1, 0] == source and runs[ran - 1, 1] + runs[ran - 1, 2] == place:
        runs[ran - 1, 2] += size
        return ran
    runs[ran, 0], runs[ran, 1], runs[ran, 2] = source, place, size
    return ran + 1


@_compiled  # type: ignore[untyped-decorator]
def merged_recent(
    old: np.ndarray, at: int, recents: int, best: np.ndarray, n: int, limit: int,
    time: np.ndarray, hashes: np.ndarray, out: np.ndarray, to: int,
) -> tuple[int, int]:  # fmt: skip
    """Writes the newest `limit` of old ids and events; where they end and how many they are."""
    new = kept = taken = 0
    while new < n and kept < limit:
        if taken < recents and _not_after(old, at, time, hashes, best[new]):
            to, at = copied(out, to, old, at, _RECENT_BYTES)
            taken += 1
        else:
            put_word(out, to, np.uint64(time[best[new]]))
            put_word(out, to + 8, hashes[best[new]])
            to, new = to + _RECENT_BYTES, new + 1
        kept += 1
    rest = min(limit - kept, recents - taken)
    to, _ = copied(out, to, old, at, _RECENT_BYTES * rest)
    return to, kept + rest


@_compiled  # type: ignore[untyped-decorator]
def _put_entry(
    out: np.ndarray, to: int, time: int, event: Any, chosen: int, kind: int, length: int
) -> int:
    put_word(out, to, np.uint64(time))
    put_word(out, to + 8, event)
    out[to + 16], out[to + 17] = chosen, kind
    for place in range(4):
        out[to + 18 + place] = length >> 8 * place & 0xFF
    return to + ENTRY_BYTES
