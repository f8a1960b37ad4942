"""Rows' bytes moved many at a time, compiled: hashed, found, gathered, packed for the wire.

Knows spans of bytes, XXH64 and RESP. Does not know what a row's parts mean. All inputs are
read-only arrays (`features.rows.byte_slices.given`), so that each function is compiled for one
type. Importing takes a second, so readers do not; `python -m features.kernels.fold` fills the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # type: ignore[import-untyped]

from streams.kernels.raw import copy_bytes

_compiled: Any = njit(cache=True, nogil=True)

_P1, _P2 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F)
_P3, _P4 = np.uint64(0x165667B19E3779F9), np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_WORD = np.uint64(64)


@_compiled  # type: ignore[untyped-decorator]
def copied(
    out: np.ndarray, at: int, source: np.ndarray, start: int, length: int
) -> tuple[int, int]:
    """Copies; the places behind what was written and behind what was read."""
    copy_bytes(out, at, source, start, length)
    return at + length, start + length


@_compiled  # type: ignore[untyped-decorator]
def xxh64(data: np.ndarray, start: int, stop: int) -> Any:
    """XXH64 with seed 0 of `data[start:stop]`."""
    size = stop - start
    words = data[start : start + size // 8 * 8].view(np.uint64)
    at = 0
    if size >= 32:
        a, b, c, d = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
        while at + 4 <= len(words):
            a, b = _mixed(a, words[at]), _mixed(b, words[at + 1])
            c, d = _mixed(c, words[at + 2]), _mixed(d, words[at + 3])
            at += 4
        digest = _turned(a, 1) + _turned(b, 7) + _turned(c, 12) + _turned(d, 18)
        for lane in (a, b, c, d):
            digest = (digest ^ _mixed(np.uint64(0), lane)) * _P1 + _P4
    else:
        digest = _P5
    digest += np.uint64(size)
    while at < len(words):
        digest = _turned(digest ^ _mixed(np.uint64(0), words[at]), 27) * _P1 + _P4
        at += 1
    at = start + 8 * at
    if at + 4 <= stop:
        half = np.uint64(0)
        for place in range(4):
            half |= np.uint64(data[at + place]) << np.uint64(8 * place)
        digest = _turned(digest ^ half * _P1, 23) * _P2 + _P3
        at += 4
    while at < stop:
        digest = _turned(digest ^ np.uint64(data[at]) * _P5, 11) * _P1
        at += 1
    digest = (digest ^ digest >> np.uint64(33)) * _P2
    digest = (digest ^ digest >> np.uint64(29)) * _P3
    return digest ^ digest >> np.uint64(32)


@_compiled  # type: ignore[untyped-decorator]
def _mixed(lane: Any, word: Any) -> Any:
    return _turned(lane + word * _P2, 31) * _P1


@_compiled  # type: ignore[untyped-decorator]
def _turned(word: Any, bits: int) -> Any:
    left = np.uint64(bits)
    return word << left | word >> (_WORD - left)


@_compiled  # type: ignore[untyped-decorator]
def gathered(
    data: np.ndarray, start: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8, int64 [N + 1]): spans from anywhere in `data`, one after another, and offsets."""
    offsets = np.zeros(len(start) + 1, np.int64)
    for r in range(len(start)):
        offsets[r + 1] = offsets[r] + length[r]
    out = np.empty(offsets[len(start)], np.uint8)
    for r in range(len(start)):
        copied(out, offsets[r], data, start[r], length[r])
    return out, offsets


@_compiled  # type: ignore[untyped-decorator]
def scatter(data: np.ndarray, offsets: np.ndarray, out: np.ndarray, start: np.ndarray) -> None:
    """Writes each span of `data` to its place in `out`."""
    for r in range(len(start)):
        size = offsets[r + 1] - offsets[r]
        copied(out, start[r], data, offsets[r], size)


@_compiled  # type: ignore[untyped-decorator]
def move(
    data: np.ndarray, start: np.ndarray, length: np.ndarray, out: np.ndarray, to: np.ndarray
) -> None:
    """Writes the spans of `data` at `start` to their places `to` in `out`."""
    for r in range(len(start)):
        copied(out, to[r], data, start[r], length[r])


@_compiled  # type: ignore[untyped-decorator]
def hashes(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """uint64 [N]: XXH64 of each span."""
    found = np.empty(len(offsets) - 1, np.uint64)
    for r in range(len(found)):
        found[r] = xxh64(data, offsets[r], offsets[r + 1])
    return found


@_compiled  # type: ignore[untyped-decorator]
def found_slots(table: np.ndarray, keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64 [N]: the slot of each wanted key in a table of open addressing; 0 where none is.

    `table` (int64, a power of two long, partly zeros) holds slots, `keys` (uint64) by slot.
    """
    slots = np.empty(len(wanted), np.int64)
    for r in range(len(wanted)):
        slots[r] = table[_place(table, keys, wanted[r])]
    return slots


@_compiled  # type: ignore[untyped-decorator]
def enter(table: np.ndarray, keys: np.ndarray, first: int) -> None:
    """Puts the slots from `first` on into the table."""
    for slot in range(first, len(keys)):
        table[_place(table, keys, keys[slot])] = slot


@_compiled  # type: ignore[untyped-decorator]
def _place(table: np.ndarray, keys: np.ndarray, key: np.uint64) -> Any:
    place = np.int64(key & np.uint64(len(table) - 1))
    while table[place] and keys[table[place]] != key:
        place = (place + 1) & (len(table) - 1)
    return place


@_compiled  # type: ignore[untyped-decorator]
def packed_keys(
    data: np.ndarray, offsets: np.ndarray, head: np.ndarray, tail: np.ndarray
) -> np.ndarray:
    """uint8: RESP bulk strings, each `head`, the span's size (4 bytes), the span, `tail`."""
    rows = len(offsets) - 1
    out = np.empty(offsets[rows] - offsets[0] + rows * (len(head) + len(tail) + 40), np.uint8)
    at = 0
    for r in range(rows):
        at = _key(out, at, data, offsets[r], offsets[r + 1] - offsets[r], head, tail)
    return out[:at]


@_compiled  # type: ignore[untyped-decorator]
def _key(
    out: np.ndarray, at: int, data: np.ndarray, start: int, size: int,
    head: np.ndarray, tail: np.ndarray,
) -> int:  # fmt: skip
    at = _decimal(out, at, len(head) + 4 + size + len(tail))
    at, _ = copied(out, at, head, 0, len(head))
    for place in range(4):
        out[at + place] = size >> 8 * place & 0xFF
    at, _ = copied(out, at + 4, data, start, size)
    at, _ = copied(out, at, tail, 0, len(tail))
    end: int = _line_end(out, at)
    return end


@_compiled  # type: ignore[untyped-decorator]
def packed_values(data: np.ndarray, offsets: np.ndarray, tag: int) -> np.ndarray:
    """uint8: each span as a RESP bulk string of a Protobuf field: `tag`, its size, its bytes."""
    rows = len(offsets) - 1
    out = np.empty(offsets[rows] - offsets[0] + rows * 40, np.uint8)
    at = 0
    for r in range(rows):
        at = _value(out, at, data, offsets[r], offsets[r + 1] - offsets[r], tag)
    return out[:at]


@_compiled  # type: ignore[untyped-decorator]
def _value(out: np.ndarray, at: int, data: np.ndarray, start: int, size: int, tag: int) -> int:
    at = _decimal(out, at, 1 + _varint_bytes(np.uint64(size)) + size)
    out[at] = tag
    at = _varint(out, at + 1, np.uint64(size))
    at, _ = copied(out, at, data, start, size)
    end: int = _line_end(out, at)
    return end


@_compiled  # type: ignore[untyped-decorator]
def packed_sets(
    ids: np.ndarray, id_offsets: np.ndarray, head: np.ndarray, tail: np.ndarray,
    rows: np.ndarray, row_offsets: np.ndarray, tag: int, time_ms: np.ndarray,
    command: np.ndarray, row_field: np.ndarray, time_field: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """uint8: per row `command`, its key as of `packed_keys`, `row_field`, its value as of
    `packed_values`, `time_field` and its time as a Protobuf Timestamp."""
    n = len(row_offsets) - 1
    words = len(head) + len(tail) + len(command) + len(row_field) + len(time_field)
    long = id_offsets[n] - id_offsets[0] + row_offsets[n] - row_offsets[0]
    out, at = np.empty(long + n * (words + 150), np.uint8), 0
    for r in range(n):
        at, _ = copied(out, at, command, 0, len(command))
        at = _key(out, at, ids, id_offsets[r], id_offsets[r + 1] - id_offsets[r], head, tail)
        at, _ = copied(out, at, row_field, 0, len(row_field))
        size = row_offsets[r + 1] - row_offsets[r]
        at = _value(out, at, rows, row_offsets[r], size, tag)
        at, _ = copied(out, at, time_field, 0, len(time_field))
        at = _time(out, at, time_ms[r])
    return out[:at]


@_compiled  # type: ignore[untyped-decorator]
def _time(out: np.ndarray, at: int, time_ms: int) -> Any:
    """`features.online.feast_keys.timestamp` as a bulk string."""
    seconds, nanos = np.uint64(time_ms // 1000), np.uint64(time_ms % 1000 * 1_000_000)
    size = 0
    for part in (seconds, nanos):
        size += 1 + _varint_bytes(part) if part else 0
    at = _decimal(out, at, size)
    if seconds:
        out[at] = 0x08
        at = _varint(out, at + 1, seconds)
    if nanos:
        out[at] = 0x10
        at = _varint(out, at + 1, nanos)
    return _line_end(out, at)


@_compiled  # type: ignore[untyped-decorator]
def _varint(out: np.ndarray, at: int, number: np.uint64) -> int:
    while number > np.uint64(0x7F):
        out[at] = number & np.uint64(0x7F) | np.uint64(0x80)
        number >>= np.uint64(7)
        at += 1
    out[at] = number
    return at + 1


@_compiled  # type: ignore[untyped-decorator]
def _line_end(out: np.ndarray, at: int) -> int:
    out[at], out[at + 1] = 13, 10
    return at + 2


@_compiled  # type: ignore[untyped-decorator]
def _decimal(out: np.ndarray, at: int, number: int) -> int:
    """Writes `$`, the digits and the line's end; the place behind them."""
    digits, rest = 1, number // 10
    while rest:
        digits, rest = digits + 1, rest // 10
    out[at] = 36
    for place in range(digits):
        out[at + digits - place] = 48 + number % 10
        number //= 10
    out[at + digits + 1], out[at + digits + 2] = 13, 10
    return at + digits + 3


@_compiled  # type: ignore[untyped-decorator]
def _varint_bytes(number: np.uint64) -> int:
    size = 1
    while number > np.uint64(0x7F):
        number >>= np.uint64(7)
        size += 1
    return size
