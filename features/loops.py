"""The two loops of a fold that numpy cannot do in one pass, compiled: tiles and lists merged.

Knows sorted parts of rows and how an event adds to them, as tables of numbers. Does not
know declarations (`features.fold` makes the tables). Importing takes a second, so readers
do not; `python -m features.loops` fills the cache of compiled code, once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]

_compiled: Any = njit(cache=True)

# A tile key's parts, as `features.tiles.split_key` tells them.
_INDEX, _SLOT, _SIZE, _HIGH = np.uint64(25), np.uint64(5), np.uint64(30), np.uint64(15)
_LOW_INDEX, _LOW_SLOT, _HIGH_INDEX = np.uint64(2**25 - 1), np.uint64(31), np.uint64(2**15 - 1)
_ABOVE = np.uint64(32)


@_compiled  # type: ignore[untyped-decorator]
def merge_tiles(
    old_row: np.ndarray, old: np.ndarray,
    first: np.ndarray, event: np.ndarray, time: np.ndarray, kind: np.ndarray, value: np.ndarray,
    rule_first: np.ndarray, rule_key: np.ndarray, rule_ms: np.ndarray, rule_value: np.ndarray,
    keep_ms: np.ndarray, size_ms: np.ndarray, newest: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(row, tile) of every row's tiles with the events added, ascending by row and key.

    `event[first[r]:first[r + 1]]` are row r's events. An event of kind k adds by rules
    `rule_first[k]` to `rule_first[k + 1]`: key but for the index, tile size in ms (0: endless),
    row of `value` to add. Tiles of size s and slot c that end `keep_ms[s, c]` before the
    row's newest event are left out.
    """
    most, touched = _touched(first, event, kind, rule_first)
    keys, sums = np.empty(most, np.uint64), np.empty(most, np.int64)
    row_out = np.empty(len(old) + touched, np.int64)
    out = np.empty(len(old) + touched, old.dtype)
    at, done = 0, 0
    for r in range(len(newest)):
        n = 0
        for i in range(first[r], first[r + 1]):
            e = event[i]
            for rule in range(rule_first[kind[e]], rule_first[kind[e] + 1]):
                key = rule_key[rule]
                if rule_ms[rule]:
                    key |= _index(np.uint64(time[e] // rule_ms[rule]))
                n = _add(keys, sums, n, key, value[rule_value[rule], e])
        new = 0
        while True:
            more = at < len(old) and old_row[at] == r
            if new == n and not more:
                break
            if new == n or (more and old[at].key < keys[new]):
                key, total = old[at].key, old[at].value
                at += 1
            elif more and old[at].key == keys[new]:
                key, total = keys[new], old[at].value + sums[new]
                at, new = at + 1, new + 1
            else:
                key, total = keys[new], sums[new]
                new += 1
            if not _expired(key, newest[r], keep_ms, size_ms):
                row_out[done] = r
                out[done].key, out[done].value = key, total
                done += 1
    return row_out[:done], out[:done]


@_compiled  # type: ignore[untyped-decorator]
def _index(index: np.uint64) -> Any:
    """The index's part of a key."""
    return index & _LOW_INDEX | (index >> _INDEX & _HIGH_INDEX) << _ABOVE


@_compiled  # type: ignore[untyped-decorator]
def _touched(
    first: np.ndarray, event: np.ndarray, kind: np.ndarray, rule_first: np.ndarray
) -> tuple[int, int]:
    """How many tiles the events of one row touch at most, and those of all rows, with repeats."""
    most, touched = 0, 0
    for r in range(len(first) - 1):
        here = 0
        for i in range(first[r], first[r + 1]):
            here += rule_first[kind[event[i]] + 1] - rule_first[kind[event[i]]]
        touched += here
        most = max(most, here)
    return most, touched


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
def _expired(key: np.uint64, newest: int, keep_ms: np.ndarray, size_ms: np.ndarray) -> bool:
    size, high = np.int64(key >> _SIZE & np.uint64(3)), key >> _ABOVE
    index = np.int64(key & _LOW_INDEX | (high & _HIGH_INDEX) << _INDEX)
    slot = np.int64(key >> _INDEX & _LOW_SLOT | high >> _HIGH << _SLOT)
    end = (index + 1) * size_ms[size]
    return bool(size and end <= newest - keep_ms[size, slot])


@_compiled  # type: ignore[untyped-decorator]
def merge_lists(
    old_row: np.ndarray, old: np.ndarray,
    first: np.ndarray, event: np.ndarray, time: np.ndarray, hashes: np.ndarray, kind: np.ndarray,
    length: np.ndarray, listed: np.ndarray, limit: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(row, entry, source) of every row's lists with the events added, newest first.

    `listed[l, k]`: list l takes events of kind k whose `length[l]` (bytes of text) is not
    negative; it keeps the first `limit[l]` by falling time and hash. `source` is the place of
    the old entry, or len(old) + l * len(time) + the event's place.
    """
    rows, lists = len(first) - 1, len(limit)
    best = np.empty(limit.max(), np.int64)
    most = min(len(old) + lists * len(event), rows * limit.sum())
    row_out, source = np.empty(most, np.int64), np.empty(most, np.int64)
    out = np.empty(most, old.dtype)
    at, done = 0, 0
    for r in range(rows):
        for chosen in range(lists):
            n = 0
            for i in range(first[r], first[r + 1]):
                e = event[i]
                if not listed[chosen, kind[e]] or length[chosen, e] < 0:
                    continue
                place = n
                while place > 0 and _after(time, hashes, best[place - 1], e):
                    place -= 1
                if place == limit[chosen]:
                    continue
                n = min(n + 1, limit[chosen])
                for move in range(n - 1, place, -1):
                    best[move] = best[move - 1]
                best[place] = e
            new, kept = 0, 0
            while True:
                more = at < len(old) and old_row[at] == r and old[at].list == chosen
                if kept == limit[chosen] or (new == n and not more):
                    break
                from_old = more
                if more and new < n:
                    e = best[new]
                    newer = time[e] > old[at].time
                    from_old = not (newer or (time[e] == old[at].time and hashes[e] > old[at].hash))
                if from_old:
                    out[done] = old[at]
                    source[done] = at
                    at += 1
                else:
                    e = best[new]
                    out[done].time, out[done].hash = time[e], hashes[e]
                    out[done].list, out[done].kind = chosen, kind[e]
                    out[done].length = length[chosen, e]
                    source[done] = len(old) + chosen * len(time) + e
                    new += 1
                row_out[done] = r
                done, kept = done + 1, kept + 1
            while at < len(old) and old_row[at] == r and old[at].list == chosen:
                at += 1
    return row_out[:done], out[:done], source[:done]


@_compiled  # type: ignore[untyped-decorator]
def _after(time: np.ndarray, hashes: np.ndarray, a: int, b: int) -> bool:
    """Whether event a comes after b in a list."""
    return bool(time[a] < time[b] or (time[a] == time[b] and hashes[a] < hashes[b]))


def warm() -> None:
    """Compiles what a fold and its write call (`features.packing` too), for the types that
    they give, or finds it in the cache."""
    from features.definitions import DEFINITIONS
    from features.feast_format import RowFormat
    from features.fold import fold, group
    from features.row_cache import RowCache
    from features.spans import Spans
    from features.swap import Swap
    from features.tiles import decode, encode_spans
    from streams.bus import Stamp
    from streams.schema import EVENT_SCHEMA

    user, key, times = DEFINITIONS["user"], np.ones(1, np.uint64), np.zeros(1, np.int64)
    batch = group(user, EVENT_SCHEMA.empty_table())
    fold(user, decode([]), batch, Stamp("", 0, 0))
    rows, cache = encode_spans(decode([None])), RowCache(1)
    cache.put("user", key, rows)
    cache.get("user", key)
    swap = Swap(RowFormat(user, ""), b"", 0)
    list(swap.calls(Spans.of([b"u"]), Spans.of([None]), rows, times, 1))


if __name__ == "__main__":
    from features.loops import warm as _warm  # the module that folds import, not `__main__`

    _warm()
