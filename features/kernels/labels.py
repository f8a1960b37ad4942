"""The point-in-time join's loops that numpy cannot do in one pass, compiled.

Knows sorted moments, rows and spans. Does not know events or labels. A place that is asked
for lies near the one asked for before, so it is galloped to from there: of 200,000 labels
and 1M events that took 2 to 8 ms where binary searches took 10 to 20. Importing takes a
second, so readers do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]


def _compiled(signature: str) -> Any:
    """For one type, when the module is first imported anywhere, so that no call waits for it."""
    return njit(signature, cache=True)


_LONGS, _KEYS = "int64[::1]", "uint64[::1]"
_ODD = np.uint64(0x9E3779B97F4A7C15)


@_compiled("boolean(int64, int64, int64, int64)")  # type: ignore[untyped-decorator]
def _before(row: int, time: int, asked_row: int, asked_time: int) -> bool:
    return row < asked_row or (row == asked_row and time < asked_time)


@_compiled(f"{_LONGS}({_LONGS}, {_LONGS}, {_LONGS}, {_LONGS})")  # type: ignore[untyped-decorator]
def first_from(
    row: np.ndarray, time: np.ndarray, asked_row: np.ndarray, asked_time: np.ndarray
) -> np.ndarray:
    """int64 [Q]: place of the first of the moments (int64 [M], sorted by row and time) that
    is not before each one asked for. Any order is right, a rising one is fast."""
    out = np.empty(len(asked_row), np.int64)
    at = 0
    for i in range(len(asked_row)):
        low, high, step = at - 1, at, 1
        while high < len(row) and _before(row[high], time[high], asked_row[i], asked_time[i]):
            low, high, step = high, high + step, 2 * step
        high, step = min(high, len(row)), 1
        while low >= 0 and not _before(row[low], time[low], asked_row[i], asked_time[i]):
            low, high, step = low - step, low, 2 * step
        low = max(low, -1)
        while high - low > 1:
            middle = (low + high) >> 1
            if _before(row[middle], time[middle], asked_row[i], asked_time[i]):
                low = middle
            else:
                high = middle
        out[i] = at = high
    return out


@_compiled(f"{_LONGS}({_LONGS}, {_LONGS})")  # type: ignore[untyped-decorator]
def sorted_by_row(row: np.ndarray, order: np.ndarray) -> np.ndarray:
    """int64 [M]: the places `order` by row (int64 [M], from 0), otherwise as they came."""
    place = np.zeros(row.max() + 2 if len(row) else 1, np.int64)
    for r in row:
        place[r + 1] += 1
    place = np.cumsum(place)
    out = np.empty(len(order), np.int64)
    for at in order:
        out[place[row[at]]] = at
        place[row[at]] += 1
    return out


@_compiled(f"{_LONGS}({_LONGS}, {_LONGS})")  # type: ignore[untyped-decorator]
def largest_so_far(row: np.ndarray, value: np.ndarray) -> np.ndarray:
    """int64 [L]: the largest value up to each place within its run of equal rows."""
    out = value.copy()
    for i in range(1, len(row)):
        if row[i] == row[i - 1] and out[i - 1] > out[i]:
            out[i] = out[i - 1]
    return out


@_compiled(f"Tuple(({_LONGS}, uint32[::1]))({_LONGS}, {_LONGS})")  # type: ignore[untyped-decorator]
def spread(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans one after another: offsets int64 [L + 1], and the places in them, uint32."""
    offsets = np.zeros(len(start) + 1, np.int64)
    for i in range(len(start)):
        offsets[i + 1] = offsets[i] + stop[i] - start[i]
    places = np.empty(offsets[-1], np.uint32)
    for i in range(len(start)):
        for k in range(offsets[i], offsets[i + 1]):
            places[k] = start[i] + k - offsets[i]
    return offsets, places


@_compiled(f"boolean({_KEYS})")  # type: ignore[untyped-decorator]
def repeats(keys: np.ndarray) -> bool:
    """Whether a key (uint64 [N]) comes twice; 0 counts as 1."""
    bits = 2
    while 1 << bits < 2 * len(keys):
        bits += 1
    table = np.zeros(1 << bits, np.uint64)
    last, shift = np.int64((1 << bits) - 1), np.uint64(64 - bits)
    for key in keys:
        key = max(key, np.uint64(1))
        at = np.int64((key * _ODD) >> shift)
        while table[at]:
            if table[at] == key:
                return True
            at = (at + 1) & last
        table[at] = key
    return False
