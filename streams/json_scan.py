"""JSON objects to columns in one pass, compiled: what is surely well formed and within bounds.

Knows JSON, and a contract's fields, words and bounds as tables (`streams.json_events` makes
them: they are arguments because compiled code is cached by the state of this file alone). A
message is taken only where a full reader would take it with the same values; all others are
left out, for that reader to judge: fields stated twice, texts that are too long in bytes,
numbers that are not plain, lone surrogates, escaped or foreign names, deep nesting.

A NUL behind each message stands for its end: JSON has none, in strings or outside, so that
no step needs to ask whether the message goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]

_compiled: Any = njit(cache=True, nogil=True)

NO_WORD = 255

_QUOTE, _COLON, _COMMA, _MINUS, _PLUS, _POINT = 0x22, 0x3A, 0x2C, 0x2D, 0x2B, 0x2E
_BACKSLASH, _ZERO, _NINE, _E, _F, _N, _T, _U = 0x5C, 0x30, 0x39, 0x65, 0x66, 0x6E, 0x74, 0x75
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 0x7B, 0x7D, 0x5B, 0x5D
_LOWER = 0x20  # the bit by which E and e differ
_PLAIN = np.array([0x20 <= b < 0x80 and b not in b'"\\' for b in range(256)])
_SPACE = np.array([b in b" \t\n\r" for b in range(256)])
_HEX = np.full(256, -1)
_HEX[list(b"0123456789abcdef")], _HEX[list(b"ABCDEF")] = range(16), range(10, 16)
_ESCAPED = np.full(256, -1)
_ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')
_NULL, _TRUE, _FALSE = (np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))
_DIGITS = 18  # what surely fits an int64
_EXPONENT_DIGITS = 2  # what surely is a finite float64
_DEEPEST = 60


@_compiled  # type: ignore[untyped-decorator]
def scan(
    data: np.ndarray, starts: np.ndarray,
    name: np.ndarray, name_bytes: np.ndarray, spelled: np.ndarray, spelled_bytes: np.ndarray,
    words_from: np.ndarray, most_bytes: np.ndarray, least: np.ndarray, most: np.ndarray,
    states: np.ndarray, needs: np.ndarray, default: np.ndarray,
) -> Any:  # fmt: skip
    """The parts of `streams.json_events.Scanned`, of which the columns have room for N rows.

    Message r of N is `data[starts[r]:starts[r + 1] - 1]`, with a NUL behind it; the tables are
    those of `streams.json_events.Contract`.
    """
    count, texts, words, numbers = len(starts) - 1, len(most_bytes), len(default[0]), len(least)
    rows = np.empty(count, np.int64)
    text, ends = np.empty((texts, len(data)), np.uint8), np.zeros((texts, count + 1), np.int32)
    stated = np.empty((texts, count), np.bool_)
    word, number = np.empty((words, count), np.uint8), np.empty((numbers, count), np.int64)
    begin, end = np.zeros(len(name), np.int64), np.zeros(len(name), np.int64)
    taken = 0
    for r in range(count):
        at, stop = starts[r], starts[r + 1] - 1
        if not _walked(data, at, stop, name, name_bytes, texts + words, begin, end):
            continue
        kind = _word(data, begin[texts], end[texts], spelled, spelled_bytes, 0, words_from[1])
        if kind == NO_WORD or not _complete(end, needs, kind):
            continue
        word[0, taken] = kind
        sound = True
        for place in range(1, words):
            field = texts + place
            word[place, taken] = default[kind, place]
            if states[kind, field] and end[field] >= 0:
                first, last = words_from[place], words_from[place + 1]
                found = _word(data, begin[field], end[field], spelled, spelled_bytes, first, last)
                word[place, taken] = found
                sound &= found != NO_WORD
        for place in range(numbers):
            field = texts + words + place
            number[place, taken] = 0
            if states[kind, field] and end[field] >= 0:
                number[place, taken] = begin[field]
                sound &= least[place] <= begin[field] <= most[place]
        for field in range(texts):
            to = ends[field, taken]
            stated[field, taken] = states[kind, field] and end[field] >= 0
            if stated[field, taken]:
                to = _copied(data, begin[field], end[field], text, field, to)
                sound &= 1 <= to - ends[field, taken] <= most_bytes[field]
            ends[field, taken + 1] = to
        if sound:
            rows[taken] = r
            taken += 1
    return rows[:taken], text, ends, stated, word, number


@_compiled  # type: ignore[untyped-decorator]
def _complete(end: np.ndarray, needs: np.ndarray, kind: int) -> bool:
    field = 0
    while field < len(end) and (end[field] >= 0 or not needs[kind, field]):
        field += 1
    return field == len(end)


@_compiled  # type: ignore[untyped-decorator]
def _walked(
    data: np.ndarray, at: int, stop: int, name: np.ndarray, name_bytes: np.ndarray,
    first_number: int, begin: np.ndarray, end: np.ndarray,
) -> bool:  # fmt: skip
    """Whether the message is one object whose known fields have their types.

    `begin`, `end` tell where a field's text lies, `begin` a number's value; `end` is -1 where
    a field is absent or null.
    """
    end[:] = -1
    seen = 0
    at = _spaces(data, at)
    if data[at] != _OPEN:
        return False
    while True:
        at = _spaces(data, at + 1)
        if data[at] != _QUOTE:
            return False
        key = at + 1
        at = key
        while _PLAIN[data[at]]:
            at += 1
        if data[at] != _QUOTE:
            return False
        field = _field(data, key, at - key, name, name_bytes)
        at = _spaces(data, at + 1)
        if data[at] != _COLON:
            return False
        at = _spaces(data, at + 1)
        if field < 0:
            at = _skipped(data, at)
        elif seen >> field & 1:
            return False
        else:
            seen |= 1 << field
            if data[at] == _N:
                at = _literal(data, at, _NULL)
            elif field >= first_number:
                begin[field], at = _integer(data, at)
                end[field] = at
            elif data[at] == _QUOTE:
                begin[field] = at + 1
                end[field] = _string_end(data, at + 1)
                at = end[field] + 1 if end[field] >= 0 else -1
            else:
                return False
        if at < 0:
            return False
        at = _spaces(data, at)
        if data[at] == _CLOSE:
            return bool(_spaces(data, at + 1) == stop)
        if data[at] != _COMMA:
            return False


@_compiled  # type: ignore[untyped-decorator]
def _field(data: np.ndarray, at: int, size: int, name: np.ndarray, name_bytes: np.ndarray) -> int:
    for field in range(len(name)):
        if name_bytes[field] == size and _same(data, at, size, name, field):
            return field
    return -1


@_compiled  # type: ignore[untyped-decorator]
def _word(
    data: np.ndarray, at: int, end: int, word: np.ndarray, word_bytes: np.ndarray, first: int,
    last: int,
) -> int:  # fmt: skip
    """Which of words `first` to `last` the text is, NO_WORD where it is none (or absent)."""
    for place in range(first, last):
        if word_bytes[place] == end - at and _same(data, at, end - at, word, place):
            return place - first
    return NO_WORD


@_compiled  # type: ignore[untyped-decorator]
def _same(data: np.ndarray, at: int, size: int, words: np.ndarray, word: int) -> bool:
    place = 0
    while place < size and data[at + place] == words[word, place]:
        place += 1
    return place == size


@_compiled  # type: ignore[untyped-decorator]
def _spaces(data: np.ndarray, at: int) -> int:
    while _SPACE[data[at]]:
        at += 1
    return at


@_compiled  # type: ignore[untyped-decorator]
def _literal(data: np.ndarray, at: int, word: np.ndarray) -> int:
    """The place behind the word, or -1 where another stands there."""
    for byte in word:
        if data[at] != byte:
            return -1
        at += 1
    return at


@_compiled  # type: ignore[untyped-decorator]
def _integer(data: np.ndarray, at: int) -> tuple[int, int]:
    """(value, the place behind it) of a whole number that is not negative; else (0, -1)."""
    start, value = at, 0
    while _ZERO <= data[at] <= _NINE:
        if at - start == _DIGITS:
            return 0, -1
        value = value * 10 + data[at] - _ZERO
        at += 1
    if at == start or (data[start] == _ZERO and at - start > 1):
        return 0, -1
    return value, at


@_compiled  # type: ignore[untyped-decorator]
def _string_end(data: np.ndarray, at: int) -> int:
    """The closing quote of the string whose bytes begin here, or -1."""
    while True:
        byte = data[at]
        if _PLAIN[byte]:
            at += 1
            continue
        if byte == _QUOTE:
            return at
        if byte == _BACKSLASH:
            _, at = _escape(data, at + 1)
        else:
            at = _character_end(data, at)
        if at < 0:
            return -1


@_compiled  # type: ignore[untyped-decorator]
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


@_compiled  # type: ignore[untyped-decorator]
def _escape(data: np.ndarray, at: int) -> tuple[int, int]:
    """(character, the place behind it) of what follows a backslash; (0, -1) in doubt."""
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


@_compiled  # type: ignore[untyped-decorator]
def _hex(data: np.ndarray, at: int) -> int:
    value = 0
    for place in range(at, at + 4):
        digit = _HEX[data[place]]
        if digit < 0:
            return -1
        value = value << 4 | digit
    return value


@_compiled  # type: ignore[untyped-decorator]
def _copied(data: np.ndarray, at: int, end: int, out: np.ndarray, row: int, to: int) -> int:
    """Writes the string's characters; the place behind them."""
    while at < end:
        if data[at] != _BACKSLASH:
            out[row, to] = data[at]
            at, to = at + 1, to + 1
        else:
            code, at = _escape(data, at + 1)
            to = _encoded(code, out, row, to)
    return to


@_compiled  # type: ignore[untyped-decorator]
def _encoded(code: int, out: np.ndarray, row: int, to: int) -> int:
    """Writes one character as UTF-8; the place behind it."""
    if code < 0x80:
        out[row, to] = code
        return to + 1
    more = 1 if code < 0x800 else 2 if code < 0x10000 else 3
    out[row, to] = (0xFF00 >> more + 1 & 0xFF) | code >> 6 * more
    for place in range(1, more + 1):
        out[row, to + place] = 0x80 | code >> 6 * (more - place) & 0x3F
    return to + more + 1


@_compiled  # type: ignore[untyped-decorator]
def _skipped(data: np.ndarray, at: int) -> int:
    """The place behind the value that begins here, or -1 where it is not surely well formed."""
    objects, depth = 0, 0  # which of what is open are objects, the innermost in the lowest bit
    while True:
        if objects & 1:
            at = _named(data, at)
            if at < 0:
                return -1
        if data[at] == _OPEN or data[at] == _OPEN_LIST:
            objects, depth = objects << 1 | (data[at] == _OPEN), depth + 1
            at = _spaces(data, at + 1)
            if depth > _DEEPEST:
                return -1
            if data[at] != (_CLOSE if objects & 1 else _CLOSE_LIST):
                continue
        else:
            at = _scalar(data, at)
            if at < 0:
                return -1
        while depth:
            at = _spaces(data, at)
            if data[at] == (_CLOSE if objects & 1 else _CLOSE_LIST):
                objects, depth, at = objects >> 1, depth - 1, at + 1
            elif data[at] == _COMMA:
                at = _spaces(data, at + 1)
                break
            else:
                return -1
        if depth == 0:
            return at


@_compiled  # type: ignore[untyped-decorator]
def _named(data: np.ndarray, at: int) -> int:
    """Where the value behind a name begins, or -1."""
    if data[at] != _QUOTE:
        return -1
    at = _string_end(data, at + 1)
    if at < 0:
        return -1
    at = _spaces(data, at + 1)
    return _spaces(data, at + 1) if data[at] == _COLON else -1


@_compiled  # type: ignore[untyped-decorator]
def _scalar(data: np.ndarray, at: int) -> Any:
    byte = data[at]
    if byte == _QUOTE:
        end = _string_end(data, at + 1)
        return end + 1 if end >= 0 else -1
    if byte == _N:
        return _literal(data, at, _NULL)
    if byte == _T:
        return _literal(data, at, _TRUE)
    if byte == _F:
        return _literal(data, at, _FALSE)
    return _number_end(data, at)


@_compiled  # type: ignore[untyped-decorator]
def _number_end(data: np.ndarray, at: int) -> int:
    """The place behind a number that surely is a finite float64 or an int64; else -1."""
    if data[at] == _MINUS:
        at += 1
    _, at = _integer(data, at)
    if at >= 0 and data[at] == _POINT:
        at = _digits_end(data, at + 1, _DIGITS)
    if at >= 0 and data[at] | _LOWER == _E:
        at += 1
        if data[at] == _MINUS or data[at] == _PLUS:
            at += 1
        at = _digits_end(data, at, _EXPONENT_DIGITS)
    return at


@_compiled  # type: ignore[untyped-decorator]
def _digits_end(data: np.ndarray, at: int, most: int) -> int:
    start = at
    while _ZERO <= data[at] <= _NINE:
        at += 1
    return at if 0 < at - start <= most else -1
