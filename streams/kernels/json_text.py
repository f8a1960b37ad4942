"""Strings in JSON, compiled: where one ends, what its escapes mean, eight bytes at a time.

Knows UTF-8 and JSON's escapes. Words are read whole, so the data needs seven bytes behind its
last NUL.
"""

from __future__ import annotations

import numpy as np

from streams.kernels.compile import borrowing
from streams.kernels.raw import copy_bytes, signed, trailing_zeros, word_at

_QUOTE, _BACKSLASH, _U = 0x22, 0x5C, 0x75
_HEX = np.full(256, -1)
_HEX[list(b"0123456789abcdef")], _HEX[list(b"ABCDEF")] = range(16), range(10, 16)
_ESCAPED = np.full(256, -1)
_ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')
_EACH = np.uint64(0x0101010101010101)  # one in each byte of a word
_QUOTES, _BACKSLASHES, _SPACES = (np.uint64(byte) * _EACH for byte in (_QUOTE, _BACKSLASH, 0x20))
_HIGH = np.uint64(0x80) * _EACH
_A, _Z = 0x61, 0x7A
_NAME = np.array([b in b"abcdefghijklmnopqrstuvwxyz0123456789_" for b in range(256)])


@borrowing
def plain_end(data: np.ndarray, at: int) -> int:
    """The next byte that is a quote, a backslash, a control character or not ASCII."""
    while True:
        word = word_at(data, at)
        quotes, slashes = word ^ _QUOTES, word ^ _BACKSLASHES
        # A byte's high bit: it is one of these. A borrow may set it falsely behind the first.
        found = (word - _SPACES | quotes - _EACH | slashes - _EACH | word) & _HIGH
        if found:
            return at + signed(trailing_zeros(found) >> np.uint64(3))
        at += 8


@borrowing
def string_end(data: np.ndarray, at: int) -> tuple[int, bool]:
    """(the closing quote of the string whose bytes begin here, or -1; whether it has escapes)."""
    escapes = False
    while True:
        at = plain_end(data, at)
        if data[at] == _QUOTE:
            return at, escapes
        if data[at] == _BACKSLASH:
            escapes = True
            _, at = _escape(data, at + 1)
        else:
            at = _character_end(data, at)
        if at < 0:
            return -1, escapes


@borrowing
def is_name(text: np.ndarray, at: int, end: int) -> bool:
    """Whether the text is of a-z, 0-9 and underscores, a letter first."""
    sound = at < end and _A <= text[at] <= _Z
    for place in range(at, end):
        sound &= _NAME[text[place]]
    return sound


@borrowing
def copied(data: np.ndarray, at: int, end: int, out: np.ndarray, to: int) -> int:
    """Writes a string without escapes; the place behind it."""
    copy_bytes(out, to, data, at, end - at)
    return to + end - at


@borrowing
def unescaped(data: np.ndarray, at: int, end: int, out: np.ndarray, to: int) -> int:
    """Writes the string's characters; the place behind them."""
    while at < end:
        if data[at] != _BACKSLASH:
            out[to] = data[at]
            at, to = at + 1, to + 1
        else:
            code, at = _escape(data, at + 1)
            to = _encoded(code, out, to)
    return to


@borrowing
def _character_end(data: np.ndarray, at: int) -> int:
    """The place behind a UTF-8 character of two to four bytes, or -1."""
    first = data[at]
    if first < 0xC2 or first > 0xF4:
        return -1
    low, high, more = 0x80, 0xBF, 1
    if first >= 0xE0:
        more = 2 if first < 0xF0 else 3
    if first == 0xE0:
        low = 0xA0  # below: an overlong form
    elif first == 0xED:
        high = 0x9F  # above: a surrogate
    elif first == 0xF0:
        low = 0x90
    elif first == 0xF4:
        high = 0x8F  # above: beyond Unicode
    if not low <= data[at + 1] <= high:
        return -1
    for place in range(at + 2, at + 1 + more):
        if data[place] & 0xC0 != 0x80:
            return -1
    return at + 1 + more


@borrowing
def _escape(data: np.ndarray, at: int) -> tuple[int, int]:
    """(character, the place behind it) of what follows a backslash; (0, -1) where that is not certain."""
    if data[at] != _U:
        known = _ESCAPED[data[at]]
        return (known, at + 1) if known >= 0 else (0, -1)
    code = _hex(data, at + 1)
    if code <= 0 or 0xDC00 <= code < 0xE000:
        return 0, -1
    if code < 0xD800 or code >= 0xE000:
        return code, at + 5
    if data[at + 5] != _BACKSLASH or data[at + 6] != _U:
        return 0, -1
    low = _hex(data, at + 7)
    if not 0xDC00 <= low < 0xE000:
        return 0, -1
    return 0x10000 + (code - 0xD800 << 10) + low - 0xDC00, at + 11


@borrowing
def _hex(data: np.ndarray, at: int) -> int:
    value = 0
    for place in range(at, at + 4):
        digit = _HEX[data[place]]
        if digit < 0:
            return -1
        value = value << 4 | digit
    return value


@borrowing
def _encoded(code: int, out: np.ndarray, to: int) -> int:
    """Writes one character as UTF-8; the place behind it."""
    if code < 0x80:
        out[to] = code
        return to + 1
    more = 1 if code < 0x800 else 2 if code < 0x10000 else 3
    out[to] = (0xFF00 >> more + 1 & 0xFF) | code >> 6 * more
    for place in range(1, more + 1):
        out[to + place] = 0x80 | code >> 6 * (more - place) & 0x3F
    return to + more + 1
