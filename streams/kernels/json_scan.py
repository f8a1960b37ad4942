"""JSON objects to columns in one pass, compiled: what is surely well formed and within bounds.

Knows JSON, and a contract's fields, words and bounds as tables (`streams.codec.json` makes
them: they are arguments because compiled code is cached by the state of this file alone),
not what strings are made of (`streams.kernels.json_text`). A
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

from streams.kernels.json_text import copied, plain_end, string_end, unescaped
from streams.kernels.raw import word_at

_compiled: Any = njit(cache=True, nogil=True)

NO_WORD = 255
PADDING = b"\0" * 16  # words are read whole, wherever they begin

_QUOTE, _COLON, _COMMA, _MINUS, _PLUS, _POINT = 0x22, 0x3A, 0x2C, 0x2D, 0x2B, 0x2E
_ZERO, _NINE, _E, _F, _N, _T = 0x30, 0x39, 0x65, 0x66, 0x6E, 0x74
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 0x7B, 0x7D, 0x5B, 0x5D
_ALL = np.uint64(2**64 - 1)
_LOWER = 0x20  # the bit by which E and e differ
_LAST_SPACE = 0x20
_SPACE = np.array([b in b" \t\n\r" for b in range(256)])
_NULL, _TRUE, _FALSE = (np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))
_DIGITS = 18  # what surely fits an int64
_EXPONENT_DIGITS = 2  # what surely is a finite float64
_DEEPEST = 60


@_compiled  # type: ignore[untyped-decorator]
def scan(
    data: np.ndarray, starts: np.ndarray,
    name: np.ndarray, spelled: np.ndarray, words_from: np.ndarray, most_bytes: np.ndarray,
    least: np.ndarray, most: np.ndarray, states: np.ndarray, needs: np.ndarray,
    default: np.ndarray,
) -> Any:  # fmt: skip
    """The parts of `streams.codec.json.Scanned`, of which the columns have room for N rows.

    Message r of N is `data[starts[r]:starts[r + 1] - 1]`, with a NUL behind it, and PADDING
    behind the last; the tables are those of `streams.codec.json.Contract`.
    """
    count, texts, words, numbers = len(starts) - 1, len(most_bytes), len(default[0]), len(least)
    rows = np.empty(count, np.int64)
    text, ends = np.empty(texts * len(data), np.uint8), np.zeros((texts, count + 1), np.int32)
    stated = np.empty((texts, count), np.bool_)
    word, number = np.empty((words, count), np.uint8), np.empty((numbers, count), np.int64)
    begin, end = np.zeros(len(name), np.int64), np.zeros(len(name), np.int64)
    follows = np.zeros(len(name) + 1, np.int64)
    taken = 0
    for r in range(count):
        at, stop = starts[r], starts[r + 1] - 1
        escaped = _walked(data, at, stop, name, texts + words, begin, end, follows)
        if escaped < 0:
            continue
        kind = _word(data, begin[texts], end[texts], spelled, 0, words_from[1])
        if kind < 0 or not _complete(end, needs, kind):
            continue
        word[0, taken] = kind
        sound = True
        for place in range(1, words):
            field = texts + place
            word[place, taken] = default[kind, place]
            if states[kind, field] and end[field] >= 0:
                first, last = words_from[place], words_from[place + 1]
                found = _word(data, begin[field], end[field], spelled, first, last)
                word[place, taken] = found
                sound &= found >= 0
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
                own = field * len(data)
                if escaped >> field & 1:
                    to = unescaped(data, begin[field], end[field], text, own + to) - own
                else:
                    to = copied(data, begin[field], end[field], text, own + to) - own
                sound &= 1 <= to - ends[field, taken] <= most_bytes[field]
            ends[field, taken + 1] = to
        if sound:
            rows[taken] = r
            taken += 1
    return rows[:taken], text.reshape(texts, len(data)), ends, stated, word, number


@_compiled  # type: ignore[untyped-decorator]
def _complete(end: np.ndarray, needs: np.ndarray, kind: int) -> bool:
    field = 0
    while field < len(end) and (end[field] >= 0 or not needs[kind, field]):
        field += 1
    return field == len(end)


@_compiled  # type: ignore[untyped-decorator]
def _walked(
    data: np.ndarray, at: int, stop: int, name: np.ndarray, first_number: int,
    begin: np.ndarray, end: np.ndarray, follows: np.ndarray,
) -> int:  # fmt: skip
    """-1 unless the message is one object whose known fields have their types; else a bit for
    each field whose text has escapes.

    `begin`, `end` tell where a field's text lies, `begin` a number's value; `end` is -1 where
    a field is absent or null. `follows` says which field came behind each the last time (the
    first behind -1, so all are one further on): producers write them in one order.
    """
    end[:] = -1
    seen = escaped = 0
    field = -1
    at = _spaces(data, at)
    if data[at] != _OPEN:
        return -1
    while True:
        at = _spaces(data, at + 1)
        if data[at] != _QUOTE:
            return -1
        key = at + 1
        at = plain_end(data, key)
        if data[at] != _QUOTE:
            return -1
        before, field = field, follows[field + 1]
        if _word(data, key, at, name, field, field + 1) < 0:
            field = _word(data, key, at, name, 0, len(name))
            follows[before + 1] = max(field, 0)
        at = _spaces(data, at + 1)
        if data[at] != _COLON:
            return -1
        at = _spaces(data, at + 1)
        if field < 0:
            at = _skipped(data, at)
        elif seen >> field & 1:
            return -1
        else:
            seen |= 1 << field
            if data[at] == _N:
                at = _literal(data, at, _NULL)
            elif field >= first_number:
                begin[field], at = _integer(data, at)
                end[field] = at
            elif data[at] == _QUOTE:
                begin[field] = at + 1
                end[field], escapes = string_end(data, at + 1)
                escaped |= escapes << field
                at = end[field] + 1 if end[field] >= 0 else -1
            else:
                return -1
        if at < 0:
            return -1
        at = _spaces(data, at)
        if data[at] == _CLOSE:
            return escaped if _spaces(data, at + 1) == stop else -1
        if data[at] != _COMMA:
            return -1


@_compiled  # type: ignore[untyped-decorator]
def _word(data: np.ndarray, at: int, end: int, words: np.ndarray, first: int, last: int) -> int:
    """Which of words `first` to `last` the text is, -1 where it is none (or absent)."""
    size = end - at
    if not 0 < size <= 16:
        return -1
    low, high = word_at(data, at), np.uint64(0)
    if size <= 8:
        low &= _ALL >> np.uint64(64 - 8 * size)
    else:
        high = word_at(data, at + 8) & _ALL >> np.uint64(128 - 8 * size)
    for place in range(first, last):
        if words[place, 0] == low and words[place, 1] == high:
            return place - first
    return -1


@_compiled  # type: ignore[untyped-decorator]
def _spaces(data: np.ndarray, at: int) -> int:
    while data[at] <= _LAST_SPACE and _SPACE[data[at]]:
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
    at, _ = string_end(data, at + 1)
    if at < 0:
        return -1
    at = _spaces(data, at + 1)
    return _spaces(data, at + 1) if data[at] == _COLON else -1


@_compiled  # type: ignore[untyped-decorator]
def _scalar(data: np.ndarray, at: int) -> Any:
    byte = data[at]
    if byte == _QUOTE:
        end, _ = string_end(data, at + 1)
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
