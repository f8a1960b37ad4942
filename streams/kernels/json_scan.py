"""JSON objects to columns in one compiled pass, for messages that are certainly valid.

Knows JSON, and a contract's fields, words and bounds as tables (made by `streams.codec.json`).
Does not know what strings contain (`streams.kernels.json_text`). A message is taken only if a full
reader would take it with the same values. All others are left to that reader: fields stated
twice, texts that are too long in bytes, numbers in another form, lone surrogates, escaped or
unknown names, deep nesting.

Each message is followed by a NUL, which JSON has neither in strings nor outside, so no step asks
whether the message goes on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from streams.kernels.arrays import (
    Bools,
    BoolTable,
    Int64s,
    MutableBoolTable,
    MutableInt32Table,
    MutableInt64s,
    MutableInt64Table,
    MutableUint8Table,
    Uint8s,
    Uint8Table,
    Uint64Table,
)
from streams.kernels.compile import borrowing, compile_now, compiled
from streams.kernels.json_numbers import number, number_end
from streams.kernels.json_text import copied, is_name, plain_end, string_end, unescaped
from streams.kernels.raw import signed, word_at

NO_WORD = 255
PADDING = b"\0" * 16  # words are read whole, wherever they begin

_QUOTE, _COLON, _COMMA = 0x22, 0x3A, 0x2C
_F, _N, _T = 0x66, 0x6E, 0x74
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST = 0x7B, 0x7D, 0x5B, 0x5D
_ALL = np.uint64(2**64 - 1)
_LAST_SPACE = 0x20
_SPACE = np.array([b in b" \t\n\r" for b in range(256)])
_NULL, _TRUE, _FALSE = (np.frombuffer(word, np.uint8) for word in (b"null", b"true", b"false"))
_DEEPEST = 60


class ScanTables(NamedTuple):
    """A contract's fields: texts come first, then words, the kind before all, then numbers.
    A field's other names come last among the names.

    `name`, `word`: the bytes of each in two machine words, with NULs behind them. Words of the
    w-th field that has them are `word[words_from[w]:words_from[w + 1]]`.
    """

    name: Uint64Table  # [names, 2]
    field_of: Int64s  # [names]
    word: Uint64Table  # [words, 2]
    words_from: Int64s
    most_bytes: Int64s  # [texts]
    least: Int64s  # [numbers]; of a decimal as it is scanned
    most: Int64s
    decimal: Bools  # [numbers]: scanned as digits << `PLACES_BITS` | places, with the sign of both
    states: BoolTable  # [kinds, fields]
    needs: BoolTable
    default: Uint8Table  # [kinds, words]; NO_WORD where the kind states no such field
    named: Bools  # [texts]: of a-z, 0-9 and underscores, a letter first
    fill: Uint8Table  # [texts, 16]: what an absent text becomes, with NULs behind it
    fill_bytes: Int64s  # [texts]; 0: an absent text stays absent


class ScannedColumns(NamedTuple):
    """What the K messages that were taken state, in columns that may have room for more."""

    rows: MutableInt64s  # [K], their places among the messages, ascending
    text: MutableUint8Table  # [texts, bytes]
    ends: MutableInt32Table  # [texts, K + 1]
    stated: MutableBoolTable  # [texts, K]
    word: MutableUint8Table  # [words, K]; NO_WORD where the kind states no such field
    number: MutableInt64Table  # [numbers, K]; 0 where none is stated


class _Places(NamedTuple):
    """Where one message's fields lie."""

    begin: MutableInt64s  # [fields]: of a text or word; a number's value
    end: MutableInt64s  # [fields]; -1 where the field is absent or null
    next_name: MutableInt64s  # [1 + names]: which name came behind each the last time


@compiled
def scan(data: Uint8s, starts: Int64s, tables: ScanTables) -> ScannedColumns:
    """Message r of N is `data[starts[r]:starts[r + 1] - 1]`, with a NUL behind it, and PADDING
    behind the last. A message is left out unless a full reader would surely take it."""
    count, texts = len(starts) - 1, len(tables.most_bytes)
    words, numbers = len(tables.default[0]), len(tables.least)
    text = np.empty(texts * len(data), np.uint8)
    out = ScannedColumns(
        np.empty(count, np.int64),
        text.reshape(texts, len(data)),
        np.zeros((texts, count + 1), np.int32),
        np.empty((texts, count), np.bool_),
        np.empty((words, count), np.uint8),
        np.empty((numbers, count), np.int64),
    )
    fields, names = len(tables.states[0]), len(tables.name)
    places = _Places(
        np.zeros(fields, np.int64), np.zeros(fields, np.int64), np.zeros(names + 1, np.int64)
    )
    taken = 0
    for r in range(count):
        escaped = _walked(data, starts[r], starts[r + 1] - 1, tables, texts + words, places)
        if escaped < 0:
            continue
        begin, end = places.begin[texts], places.end[texts]
        kind = _word(data, begin, end, tables.word, 0, tables.words_from[1])
        if kind < 0 or not _complete(places.end, tables.needs, kind):
            continue
        sound = _put_words(data, places, kind, tables, out.word, taken)
        sound &= _put_numbers(places, kind, tables, out.number, taken)
        sound &= _put_texts(data, places, escaped, kind, tables, text, out, taken)
        if sound:
            out.rows[taken] = r
            taken += 1
    return ScannedColumns(out.rows[:taken], out.text, out.ends, out.stated, out.word, out.number)


@borrowing
def _put_words(
    data: np.ndarray, places: _Places, kind: int, tables: ScanTables, out: np.ndarray, to: int
) -> bool:
    """Writes column `to`: the message's kind and words; False where one is not in its list."""
    out[0, to] = kind
    sound, texts = True, len(tables.most_bytes)
    for place in range(1, len(out)):
        field = texts + place
        out[place, to] = tables.default[kind, place]
        if tables.states[kind, field] and places.end[field] >= 0:
            first, last = tables.words_from[place], tables.words_from[place + 1]
            found = _word(data, places.begin[field], places.end[field], tables.word, first, last)
            out[place, to] = found
            sound &= found >= 0
    return sound


@borrowing
def _put_numbers(places: _Places, kind: int, tables: ScanTables, out: np.ndarray, to: int) -> bool:
    """Writes column `to`; False where a number is out of bounds."""
    sound, before = True, len(places.end) - len(out)
    for place in range(len(out)):
        field = before + place
        out[place, to] = 0
        if tables.states[kind, field] and places.end[field] >= 0:
            number = places.begin[field]
            out[place, to] = number
            sound &= tables.least[place] <= number <= tables.most[place]
    return sound


@borrowing
def _put_texts(
    data: np.ndarray, places: _Places, escaped: int, kind: int,
    tables: ScanTables, text: np.ndarray, out: ScannedColumns, to: int,
) -> bool:  # fmt: skip
    """Writes the texts of column `to`, to `text` as it lies in memory; False where one is empty,
    too long or no name. What fills in for absent texts is shorter than any message."""
    sound = True
    for field in range(len(tables.most_bytes)):
        stop = signed(out.ends[field, to])
        out.stated[field, to] = tables.states[kind, field] and places.end[field] >= 0
        if out.stated[field, to]:
            own, start = field * len(data), stop
            begin, end = places.begin[field], places.end[field]
            if escaped >> field & 1:
                stop = unescaped(data, begin, end, text, own + stop) - own
            else:
                stop = copied(data, begin, end, text, own + stop) - own
            sound &= 1 <= stop - start <= tables.most_bytes[field]
            if tables.named[field]:
                sound &= is_name(text, own + start, own + stop)
        elif tables.fill_bytes[field]:
            out.stated[field, to] = True
            for place in range(tables.fill_bytes[field]):
                text[field * len(data) + stop] = tables.fill[field, place]
                stop += 1
        out.ends[field, to + 1] = stop
    return sound


@borrowing
def _complete(end: np.ndarray, needs: np.ndarray, kind: int) -> bool:
    field = 0
    while field < len(end) and (end[field] >= 0 or not needs[kind, field]):
        field += 1
    return field == len(end)


@borrowing
def _walked(
    data: np.ndarray, at: int, stop: int, tables: ScanTables, first_number: int, places: _Places
) -> int:
    """-1 unless the message is one object whose known fields have their types; else a bit for
    each field whose text has escapes.

    Fills in `places`. A name is expected behind the one that it followed in the last message
    (`next_name` is one further on, since the first follows -1): producers keep one order.
    """
    begin, end, next_name = places
    names, field_of = tables.name, tables.field_of
    end[:] = -1
    seen = escaped = 0
    name = -1
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
        before, name = name, next_name[name + 1]
        if _word(data, key, at, names, name, name + 1) < 0:
            name = _word(data, key, at, names, 0, len(names))
            next_name[before + 1] = max(name, 0)
        field = field_of[name] if name >= 0 else -1
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
                begin[field], at = number(data, at, tables.decimal[field - first_number])
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


@borrowing
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


@borrowing
def _spaces(data: np.ndarray, at: int) -> int:
    while data[at] <= _LAST_SPACE and _SPACE[data[at]]:
        at += 1
    return at


@borrowing
def _literal(data: np.ndarray, at: int, word: np.ndarray) -> int:
    """The place behind the word, or -1 where another stands there."""
    for byte in word:
        if data[at] != byte:
            return -1
        at += 1
    return at


@borrowing
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


@borrowing
def _named(data: np.ndarray, at: int) -> int:
    """Where the value behind a name begins, or -1."""
    if data[at] != _QUOTE:
        return -1
    at, _ = string_end(data, at + 1)
    if at < 0:
        return -1
    at = _spaces(data, at + 1)
    return _spaces(data, at + 1) if data[at] == _COLON else -1


@borrowing
def _scalar(data: np.ndarray, at: int) -> int:
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
    return number_end(data, at)


compile_now(scan)
