"""The loop of finishing, compiled: stored rows' bytes and each reader's `now` in, values out.

Knows the layout of a row's bytes (`features.kernels.layout` tells it) and a window's tiles. Does not
know declarations (`features.rows.finalize` makes the tables). A read of one row took some hundred
calls of numpy and Arrow, each of a fixed cost. `python -m features.kernels.finalize` fills the
cache of compiled code, once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]
from numba import types as _numba_types

from features.kernels.layout import (
    DIGEST_BYTES,
    ENTRY,
    HEAD,
    HIGH_BITS,
    INDEX_BITS,
    LANE,
    NARROW_BITS,
    RECENT,
    SLOT_BITS,
    TILE,
    VERSION,
)
from streams.kernels.raw import copy_bytes, short_at, word_at


def _compiled(signature: Any) -> Any:
    """For one type, when the module is first imported anywhere, so that no call waits for it."""
    return njit(signature, cache=True, nogil=True)


_types: Any = _numba_types
_int: Any = np.int64
_word: Any = word_at
_short: Any = short_at
_copy: Any = copy_bytes

_LONG, _LONGS, _TABLE = _types.int64, _types.int64[::1], _types.int64[:, ::1]
_BYTES, _READ = _types.uint8[::1], _types.Array(_types.uint8, 1, "C", readonly=True)
_HEAD, _LANE, _TILE, _ENTRY, _RECENT = (part.itemsize for part in (HEAD, LANE, TILE, ENTRY, RECENT))
_SHORT, _LOW = 2**16 - 1, 2**32 - 1
_SIZE_SHIFT = INDEX_BITS + SLOT_BITS
_INDEX, _SLOT, _HIGH = 2**INDEX_BITS - 1, 2**SLOT_BITS - 1, 2**HIGH_BITS - 1
_ENDLESS = 2**63 - 1
_ABSENT, _PRESENT, _EXPIRED = 0, 1, 2  # features.store.Status
_LIST, _KIND, _LENGTH = 16, 17, 18  # where they lie in an entry


@_compiled(_types.Tuple((_LONG,) * 6)(_READ, _LONG, _LONG, _LONG))  # type: ignore[untyped-decorator]
def _parts(
    data: np.ndarray, at: int, stop: int, fingerprint: int
) -> tuple[int, int, int, int, int, int]:
    """Where a row's tiles, wide tiles, entries, recent ids and text begin, and where that ends.
    For bytes that are no whole row of these declarations: all at `at`."""
    nothing = (at, at, at, at, at, at)
    if stop - at < _HEAD + DIGEST_BYTES:
        return nothing
    first, second = _int(_word(data, at)), _int(_word(data, at + 8))
    third, fourth = _int(_word(data, at + 16)), _int(_word(data, at + 24))
    if first & _SHORT != VERSION or first >> 32 & _LOW != fingerprint:
        return nothing
    tiles = at + _HEAD + _LANE * (first >> 16 & _SHORT)
    wide = tiles + 8 * (second >> 32 & _LOW)
    entries = wide + _TILE * (fourth >> 32 & _LOW)
    recent = entries + _ENTRY * (third & _LOW)
    text = recent + _RECENT * (third >> 32 & _LOW)
    end = text + (fourth & _LOW)
    return (tiles, wide, entries, recent, text, end) if end + DIGEST_BYTES == stop else nothing


@_compiled(_types.Tuple((_LONG,) * 3)(_LONG))  # type: ignore[untyped-decorator]
def _split(key: int) -> tuple[int, int, int]:
    """`features.kernels.layout.split_key` of one."""
    high = key >> NARROW_BITS & _LOW
    slot = key >> INDEX_BITS & _SLOT | high >> HIGH_BITS << SLOT_BITS
    return key >> _SIZE_SHIFT & 3, slot, key & _INDEX | (high & _HIGH) << INDEX_BITS


@_compiled(  # type: ignore[untyped-decorator]
    _types.void(_LONG, _LONGS, _LONGS, _LONGS, _LONGS, _LONGS)
)
def _spans(
    now: int, tile_ms: np.ndarray, first: np.ndarray, span_ms: np.ndarray,
    newest: np.ndarray, oldest: np.ndarray,
) -> None:  # fmt: skip
    """Fills in the newest tile of each size and the oldest of each window, seen from `now`."""
    for size in range(len(tile_ms)):
        width = tile_ms[size]
        newest[size] = now // width if width else _ENDLESS
        for window in range(first[size], first[size + 1]):
            oldest[window] = (now - span_ms[window]) // width if width else 0


@_compiled(  # type: ignore[untyped-decorator]
    _types.Tuple((_BYTES, _LONGS, _TABLE))(
        *(_READ, _LONGS, _LONGS, _LONG, _LONG),
        *(_LONGS, _LONGS, _LONGS, _TABLE, _LONG),
    )
)
def counted(
    data: np.ndarray, bounds: np.ndarray, now: np.ndarray, fingerprint: int, ttl_ms: int,
    tile_ms: np.ndarray, first: np.ndarray, span_ms: np.ndarray, column: np.ndarray,
    columns: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Status (uint8 [N]), newest event's time (int64 [N], ms) and counts (int64 [columns, N])
    of the rows that lie between `bounds` (int64 [N + 1]) of `data`, each at its `now` (int64
    [N], ms).

    Tiles of size s are `tile_ms[s]` wide (0: endless) and counted in the windows `first[s]` to
    `first[s + 1]`; window w reaches back `span_ms[w]` and holds counter c in `column[w, c]`
    (-1: nowhere).
    """
    n = len(bounds) - 1
    status, last = np.empty(n, np.uint8), np.zeros(n, np.int64)
    total = np.zeros((columns, n), np.int64)
    newest, oldest = np.empty(len(tile_ms), np.int64), np.empty(len(span_ms), np.int64)
    for row in range(n):
        tiles, wide, entries, _, _, end = _parts(data, bounds[row], bounds[row + 1], fingerprint)
        if end > bounds[row]:
            last[row] = _int(_word(data, bounds[row] + 32))
        status[row] = _PRESENT if last[row] else _ABSENT
        if last[row] > 0 and now[row] - last[row] > ttl_ms:
            status[row] = _EXPIRED
        _spans(now[row], tile_ms, first, span_ms, newest, oldest)
        at = tiles
        while at < entries:
            key, value = _int(_word(data, at)), 0
            if at < wide:
                key, value, at = key >> NARROW_BITS & _LOW, key & _LOW, at + 8
            else:
                value, at = _int(_word(data, at + 8)), at + _TILE
            size, slot, index = _split(key)
            if slot >= column.shape[1] or index > newest[size]:
                continue
            for window in range(first[size], first[size + 1]):
                if index >= oldest[window] and column[window, slot] >= 0:
                    total[column[window, slot], row] += value
    return status, last, total


@_compiled(  # type: ignore[untyped-decorator]
    _types.Tuple((_TABLE, _LONGS))(_READ, _LONGS, _LONGS, _LONG, _LONG)
)
def _begun(
    data: np.ndarray, bounds: np.ndarray, now: np.ndarray, fingerprint: int, lists: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many entries each row brings to each list (int64 [lists, N]), and the bytes of each
    list's texts."""
    count, size = np.zeros((lists, len(now)), np.int64), np.zeros(lists, np.int64)
    for row in range(len(now)):
        _, _, entries, recent, text, end = _parts(data, bounds[row], bounds[row + 1], fingerprint)
        for at in range(entries, recent, _ENTRY):
            length = min(_int(_short(data, at + _LENGTH)), end - text)
            text += length
            place = _int(data[at + _LIST])
            if place < lists and _int(_word(data, at)) <= now[row]:
                count[place, row] += 1
                size[place] += length
    return count, size


@_compiled(  # type: ignore[untyped-decorator]
    _types.Tuple((_TABLE, _BYTES, _LONGS, _LONGS, _BYTES))(_READ, _LONGS, _LONGS, _LONG, _LONG)
)
def listed(
    data: np.ndarray, bounds: np.ndarray, now: np.ndarray, fingerprint: int, lists: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The entries that have begun at `now`, by list and row. Those of list l and row r are
    `ends[l, r]` to `ends[l, r + 1]` (int64 [lists, N + 1]) of the kinds (uint8), times (int64,
    ms) and `starts` (int64, one more): where each text begins, a zero behind each, in uint8."""
    count, size = _begun(data, bounds, now, fingerprint, lists)
    ends, into = np.zeros((lists, len(bounds)), np.int64), np.zeros(lists, np.int64)
    to, entries, bytes_ = np.zeros(lists, np.int64), 0, 0
    for place in range(lists):
        into[place], to[place], ends[place, 0] = entries, bytes_, entries
        for row in range(len(now)):
            entries += count[place, row]
            ends[place, row + 1] = entries
        bytes_ += size[place] + entries - into[place]
    kinds, times = np.empty(entries, np.uint8), np.empty(entries, np.int64)
    starts, texts = np.zeros(entries + 1, np.int64), np.zeros(bytes_, np.uint8)
    for row in range(len(now)):
        _, _, first, recent, text, end = _parts(data, bounds[row], bounds[row + 1], fingerprint)
        for at in range(first, recent, _ENTRY):
            length = min(_int(_short(data, at + _LENGTH)), end - text)
            place, time = _int(data[at + _LIST]), _int(_word(data, at))
            if place < lists and time <= now[row]:
                _copy(texts, to[place], data, text, length)
                to[place] += length + 1
                kinds[into[place]], times[into[place]] = data[at + _KIND], time
                into[place] += 1
                starts[into[place]] = to[place]
            text += length
    return ends, kinds, times, starts, texts


if __name__ == "__main__":
    from importlib import import_module
    from pathlib import Path

    # A cached function does not notice that what it takes from another file has changed.
    for _stale in Path(__file__).parent.glob("__pycache__/finalize.*.nb[ic]"):
        _stale.unlink()
    import_module("features.kernels.finalize")
