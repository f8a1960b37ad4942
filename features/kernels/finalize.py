"""Finalization, compiled: stored rows' bytes and each reader's `now` in, values out.

Knows the layout of a row's bytes (`features.kernels.layout`) and a window's tiles. Does not
know declarations (`features.rows.finalize` makes the tables). Without it a read of one row takes
about a hundred calls of numpy and Arrow, each at a fixed cost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.kernels.layout import (
    DIGEST_BYTES,
    ENTRY_BYTES,
    HEAD_BYTES,
    NARROW_BITS,
    NARROW_TILE_BYTES,
    RECENT_BYTES,
    SOURCE_OFFSET_BYTES,
    TILE_BYTES,
    VERSION,
)
from features.kernels.tile_keys import split_one
from streams.kernels.arrays import (
    MutableInt64s,
    MutableInt64Table,
    MutableUint8s,
    Uint8s,
)
from streams.kernels.compile import borrowing, compile_now, compiled
from streams.kernels.raw import copy_bytes, short_at, signed, word_at

_SHORT, _LOW = 2**16 - 1, 2**NARROW_BITS - 1
_ENDLESS = 2**63 - 1
_ABSENT, _PRESENT, _EXPIRED = 0, 1, 2  # features.store.Status
_LIST, _KIND, _LENGTH = 16, 17, 18  # where they lie in an entry


class _Rows(NamedTuple):
    """N rows to be read: row r is `data[bounds[r]:bounds[r + 1]]`."""

    data: Uint8s
    bounds: MutableInt64s  # [N + 1]
    now: MutableInt64s  # [N], each reader's, ms
    fingerprint: int  # of the declarations; rows of others read as absent


class _Windows(NamedTuple):
    """What one entity's counters count. Tiles of size s are counted in the windows `first[s]`
    to `first[s + 1]`."""

    tile_ms: MutableInt64s  # [sizes]; 0: one tile for all time
    first: MutableInt64s  # [sizes + 1]
    span_ms: MutableInt64s  # [windows], how far each reaches back
    column: MutableInt64Table  # [windows, counters]: where its count goes, -1: nowhere
    columns: int
    ttl_ms: int  # of a row, from its newest event


# As Python gives it: numba takes a plain tuple 1 µs sooner than a named one.
WindowShape = tuple[MutableInt64s, MutableInt64s, MutableInt64s, MutableInt64Table, int, int]


class _Edges(NamedTuple):
    """Places of tiles, seen from one reader's `now`."""

    newest: MutableInt64s  # [sizes]
    oldest: MutableInt64s  # [windows]


class _Lists(NamedTuple):
    """What `listed` returns."""

    ends: MutableInt64Table
    kinds: MutableUint8s
    times: MutableInt64s
    starts: MutableInt64s
    texts: MutableUint8s


@borrowing
def _parts(rows: _Rows, row: int) -> tuple[int, int, int, int, int, int]:
    """Where a row's tiles, wide tiles, entries, recent ids and text begin, and where that ends.
    For bytes that are no whole row of these declarations: all where the row begins."""
    data, at, stop = rows.data, rows.bounds[row], rows.bounds[row + 1]
    nothing = (at, at, at, at, at, at)
    if stop - at < HEAD_BYTES + DIGEST_BYTES:
        return nothing
    first, second = signed(word_at(data, at)), signed(word_at(data, at + 8))
    third, fourth = signed(word_at(data, at + 16)), signed(word_at(data, at + 24))
    if first & _SHORT != VERSION or first >> 32 & _LOW != rows.fingerprint:
        return nothing
    tiles = at + HEAD_BYTES + SOURCE_OFFSET_BYTES * (first >> 16 & _SHORT)
    wide = tiles + NARROW_TILE_BYTES * (second >> 32 & _LOW)
    entries = wide + TILE_BYTES * (fourth >> 32 & _LOW)
    recent = entries + ENTRY_BYTES * (third & _LOW)
    text = recent + RECENT_BYTES * (third >> 32 & _LOW)
    end = text + (fourth & _LOW)
    return (tiles, wide, entries, recent, text, end) if end + DIGEST_BYTES == stop else nothing


@borrowing
def _set_edges(now: int, windows: _Windows, edges: _Edges) -> None:
    """Fills in the newest tile of each size and the oldest of each window, seen from `now`."""
    for size in range(len(windows.tile_ms)):
        width = windows.tile_ms[size]
        edges.newest[size] = now // width if width else _ENDLESS
        for window in range(windows.first[size], windows.first[size + 1]):
            edges.oldest[window] = (now - windows.span_ms[window]) // width if width else 0


@compiled
def counted(
    data: Uint8s, bounds: MutableInt64s, now: MutableInt64s, fingerprint: int, shape: WindowShape
) -> tuple[MutableUint8s, MutableInt64s, MutableInt64Table]:
    """Status (uint8 [N]), newest event's time (int64 [N], ms) and counts (int64 [columns, N])
    of the rows that lie between `bounds` (int64 [N + 1]) of `data`, each at its `now` (int64
    [N], ms). Rows of other declarations than `fingerprint` read as absent. `shape`: the fields
    of `_Windows`."""
    rows, windows, n = _Rows(data, bounds, now, fingerprint), _Windows(*shape), len(now)
    status, last = np.empty(n, np.uint8), np.zeros(n, np.int64)
    total = np.zeros((windows.columns, n), np.int64)
    edges = _Edges(
        np.empty(len(windows.tile_ms), np.int64), np.empty(len(windows.span_ms), np.int64)
    )
    for row in range(n):
        last[row] = _newest_event(rows, row)
        status[row] = _PRESENT if last[row] else _ABSENT
        if last[row] > 0 and now[row] - last[row] > windows.ttl_ms:
            status[row] = _EXPIRED
        _set_edges(now[row], windows, edges)
        _count_tiles(rows, row, windows, edges, total)
    return status, last, total


@borrowing
def _newest_event(rows: _Rows, row: int) -> int:
    """Its time (ms), 0 where there is no row."""
    at = rows.bounds[row]
    _, _, _, _, _, end = _parts(rows, row)
    return signed(word_at(rows.data, at + 32)) if end > at else 0


@borrowing
def _count_tiles(
    rows: _Rows, row: int, windows: _Windows, edges: _Edges, total: np.ndarray
) -> None:
    """Adds the row's tiles to its column of `total`."""
    data, column, first = rows.data, windows.column, windows.first
    at, wide, entries, _, _, _ = _parts(rows, row)
    while at < entries:
        key, value = signed(word_at(data, at)), 0
        if at < wide:
            key, value, at = key >> NARROW_BITS & _LOW, key & _LOW, at + NARROW_TILE_BYTES
        else:
            value, at = signed(word_at(data, at + 8)), at + TILE_BYTES
        size, slot, index = split_one(key)
        if slot >= column.shape[1] or index > edges.newest[size]:
            continue
        for window in range(first[size], first[size + 1]):
            if index >= edges.oldest[window] and column[window, slot] >= 0:
                total[column[window, slot], row] += value


@compiled
def _sizes(rows: _Rows, lists: int) -> tuple[MutableInt64Table, MutableInt64s]:
    """How many entries each row brings to each list (int64 [lists, N]), and the bytes of each
    list's texts."""
    data, now = rows.data, rows.now
    count, size = np.zeros((lists, len(now)), np.int64), np.zeros(lists, np.int64)
    for row in range(len(now)):
        _, _, entries, recent, text, end = _parts(rows, row)
        for at in range(entries, recent, ENTRY_BYTES):
            length = min(signed(short_at(data, at + _LENGTH)), end - text)
            text += length
            place = signed(data[at + _LIST])
            if place < lists and signed(word_at(data, at)) <= now[row]:
                count[place, row] += 1
                size[place] += length
    return count, size


@compiled
def listed(
    data: Uint8s, bounds: MutableInt64s, now: MutableInt64s, fingerprint: int, lists: int
) -> tuple[MutableInt64Table, MutableUint8s, MutableInt64s, MutableInt64s, MutableUint8s]:
    """The entries up to each reader's `now`. Those of list l and row r are `ends[l, r]` to
    `ends[l, r + 1]` (int64 [lists, N + 1]) of the kinds (uint8), times (int64, ms) and `starts`
    (int64, one more): where each text begins, a zero behind each, in uint8."""
    rows, n = _Rows(data, bounds, now, fingerprint), len(now)
    count, size = _sizes(rows, lists)
    ends, into = np.zeros((lists, n + 1), np.int64), np.zeros(lists, np.int64)
    to, entries, bytes_ = np.zeros(lists, np.int64), 0, 0
    for place in range(lists):
        into[place], to[place], ends[place, 0] = entries, bytes_, entries
        for row in range(n):
            entries += count[place, row]
            ends[place, row + 1] = entries
        bytes_ += size[place] + entries - into[place]
    kinds, times = np.empty(entries, np.uint8), np.empty(entries, np.int64)
    starts, texts = np.zeros(entries + 1, np.int64), np.zeros(bytes_, np.uint8)
    found = _Lists(ends, kinds, times, starts, texts)
    for row in range(n):
        _put_entries(rows, row, found, into, to)
    return ends, kinds, times, starts, texts


@borrowing
def _put_entries(rows: _Rows, row: int, out: _Lists, into: np.ndarray, to: np.ndarray) -> None:
    """Writes the row's entries; `into` and `to` say where each list's next one goes, and its
    text (int64 [lists]), and move on."""
    data, now = rows.data, rows.now[row]
    _, _, first, recent, text, end = _parts(rows, row)
    for at in range(first, recent, ENTRY_BYTES):
        length = min(signed(short_at(data, at + _LENGTH)), end - text)
        place, time = signed(data[at + _LIST]), signed(word_at(data, at))
        if place < len(into) and time <= now:
            copy_bytes(out.texts, to[place], data, text, length)
            to[place] += length + 1
            out.kinds[into[place]], out.times[into[place]] = data[at + _KIND], time
            into[place] += 1
            out.starts[into[place]] = to[place]
        text += length


compile_now(counted, listed)
