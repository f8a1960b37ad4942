"""Numbers of JSON, read in compiled code.

Knows which forms are surely an int64 or a finite float64. Does not know fields or bounds
(`streams.kernels.json_scan`). What it does not surely read is left to a full reader.
"""

from __future__ import annotations

import numpy as np

from streams.kernels.compile import borrowing
from streams.kernels.raw import signed

PLACES_BITS = 5  # of a decimal: how many of its digits stand behind the point

_ZERO, _NINE, _E, _MINUS, _PLUS, _POINT = 0x30, 0x39, 0x65, 0x2D, 0x2B, 0x2E
_LOWER = 0x20  # the bit by which E and e differ
_DIGITS = 18  # what surely fits an int64
_DECIMAL_DIGITS = 15  # what a float64 holds exactly, before it is divided by a power of ten
_EXPONENT_DIGITS = 2  # what surely is a finite float64


@borrowing
def number(data: np.ndarray, at: int, places: bool) -> tuple[int, int]:
    """`decimal` where the number may have places, else `integer`."""
    return decimal(data, at) if places else integer(data, at)


@borrowing
def integer(data: np.ndarray, at: int) -> tuple[int, int]:
    """(value, the place behind it) of a whole number that is not negative; else (0, -1)."""
    start, value = at, 0
    while _ZERO <= data[at] <= _NINE:
        if at - start == _DIGITS:
            return 0, -1
        value = value * 10 + signed(data[at]) - _ZERO
        at += 1
    if at == start or (data[start] == _ZERO and at - start > 1):
        return 0, -1
    return value, at


@borrowing
def decimal(data: np.ndarray, at: int) -> tuple[int, int]:
    """(digits << PLACES_BITS | places, the place behind it) of a number; else (0, -1).

    It is negative for a negative number. Exponents, more than 15 digits and -0 are
    left to a full reader.
    """
    negative = data[at] == _MINUS
    if negative:
        at += 1
    first, (value, at) = at, integer(data, at)
    places, digits = 0, at - first
    if at >= 0 and data[at] == _POINT:
        at += 1
        point = at
        while _ZERO <= data[at] <= _NINE and at - point <= _DECIMAL_DIGITS:
            value = value * 10 + signed(data[at]) - _ZERO
            at += 1
        places = at - point
        digits += places
        if places == 0:
            return 0, -1
    if at < 0 or digits > _DECIMAL_DIGITS or data[at] | _LOWER == _E or (negative and value == 0):
        return 0, -1
    scanned = value << PLACES_BITS | places
    return (-scanned if negative else scanned), at


@borrowing
def number_end(data: np.ndarray, at: int) -> int:
    """The place behind a number that surely is a finite float64 or an int64; else -1."""
    if data[at] == _MINUS:
        at += 1
    _, at = integer(data, at)
    if at >= 0 and data[at] == _POINT:
        at = _digits_end(data, at + 1, _DIGITS)
    if at >= 0 and data[at] | _LOWER == _E:
        at += 1
        if data[at] == _MINUS or data[at] == _PLUS:
            at += 1
        at = _digits_end(data, at, _EXPONENT_DIGITS)
    return at


@borrowing
def _digits_end(data: np.ndarray, at: int, most: int) -> int:
    start = at
    while _ZERO <= data[at] <= _NINE:
        at += 1
    return at if 0 < at - start <= most else -1
