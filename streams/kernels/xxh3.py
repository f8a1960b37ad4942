"""XXH3-64 of strings in Arrow's buffers, compiled: no Python object for any of them.

Knows Arrow's layout and XXH3 with seed 0 and the default secret, for up to 240 bytes; the
library hashes longer strings. Partitions and stored rows depend on every bit of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from streams.kernels.arrays import Int32s, MutableInt64s, MutableUint64s, Uint8s, read_only
from streams.kernels.compile import borrowing, compile_now, compiled
from streams.kernels.raw import copy_bytes, high_product, short_at, signed, word_at

Hashes = npt.NDArray[np.uint64]

_LONGEST = 240  # bytes, from which on XXH3 is another algorithm
_U = np.uint64
_PRIME = _U(0x9E3779B185EBCA87)
_MIX_1, _MIX_2 = _U(0x165667919E3779F9), _U(0x9FB21C651E98DF25)
_AVALANCHE_1, _AVALANCHE_2 = _U(0xC2B2AE3D27D4EB4F), _U(0x165667B19E3779F9)
_SECRET = np.frombuffer(  # as much of it as short inputs use
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3"
    ),
    np.uint8,
)


def hashes(words: pa.Array | pa.ChunkedArray) -> Hashes:
    """uint64 [N]: `xxhash.xxh3_64_intdigest` of each string's or binary's bytes; nulls: any."""
    chunks = words.chunks if isinstance(words, pa.ChunkedArray) else [words]
    return _concatenated([_hashed(chunk) for chunk in chunks])


def joined_hashes(first: pa.ChunkedArray, second: pa.ChunkedArray) -> Hashes:
    """uint64 [N]: of the first string, NUL, the second; no nulls."""
    table = pa.Table.from_arrays([first, second], ["first", "second"])
    return _concatenated([_joined(*batch.columns) for batch in table.to_batches()])


def _concatenated(parts: list[Hashes]) -> Hashes:
    return np.concatenate([np.empty(0, np.uint64), *parts]) if len(parts) != 1 else parts[0]


def _hashed(words: pa.Array) -> Hashes:
    data, ends = string_buffers(words)
    found, longer = _hash_each(data, ends)
    for row in longer.tolist():
        found[row] = xxhash.xxh3_64_intdigest(data[ends[row] : ends[row + 1]].tobytes())
    return found


def _joined(first: pa.Array, second: pa.Array) -> Hashes:
    left, right = string_buffers(first), string_buffers(second)
    found, longer = _hash_pairs(*left, *right)
    for row in longer.tolist():
        pair = b"\0".join(data[ends[row] : ends[row + 1]].tobytes() for data, ends in (left, right))
        found[row] = xxhash.xxh3_64_intdigest(pair)
    return found


def string_buffers(words: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """(bytes, offsets int32 [N + 1]) of a string or binary array, read-only; copies nothing
    unless the array has another layout (polars gives wider offsets, or views)."""
    if not (pa.types.is_string(words.type) or pa.types.is_binary(words.type)):
        words = words.cast(pa.binary())
    _, offsets, data = words.buffers()
    bounds = np.frombuffer(offsets or _NO_OFFSETS, np.int32)
    bounds = bounds[words.offset : words.offset + len(words) + 1]
    return read_only(np.frombuffer(data or b"", np.uint8)), read_only(bounds)


_NO_OFFSETS = bytes(4)  # Arrow lets an empty array have none


@compiled
def _hash_each(data: Uint8s, ends: Int32s) -> tuple[MutableUint64s, MutableInt64s]:
    """(uint64 [N], the rows that are longer than 240 bytes)."""
    count = len(ends) - 1
    found, longer, left = np.empty(count, np.uint64), np.empty(count, np.int64), 0
    for row in range(count):
        size = signed(ends[row + 1]) - ends[row]
        if size > _LONGEST:
            longer[left] = row
            left += 1
        else:
            found[row] = xxh3(data, signed(ends[row]), size)
    return found, longer[:left]


@compiled
def _hash_pairs(
    first: Uint8s, first_ends: Int32s, second: Uint8s, second_ends: Int32s
) -> tuple[MutableUint64s, MutableInt64s]:
    """(uint64 [N], the rows that are longer than 240 bytes)."""
    count = len(first_ends) - 1
    found, longer, left = np.empty(count, np.uint64), np.empty(count, np.int64), 0
    joined = np.empty(_LONGEST, np.uint8)
    for row in range(count):
        size = signed(first_ends[row + 1]) - first_ends[row]
        more = signed(second_ends[row + 1]) - second_ends[row]
        if size + 1 + more > _LONGEST:
            longer[left] = row
            left += 1
        else:
            copy_bytes(joined, 0, first, signed(first_ends[row]), size)
            joined[size] = 0
            copy_bytes(joined, size + 1, second, signed(second_ends[row]), more)
            found[row] = xxh3(joined, 0, size + 1 + more)
    return found, longer[:left]


@borrowing
def xxh3(data: np.ndarray, at: int, size: int) -> np.uint64:
    """XXH3-64 of `size` bytes at a place, 240 at most."""
    if size > 16:
        return _of_many(data, at, size)
    if size > 8:
        low = word_at(data, at) ^ word_at(_SECRET, 24) ^ word_at(_SECRET, 32)
        high = word_at(data, at + size - 8) ^ word_at(_SECRET, 40) ^ word_at(_SECRET, 48)
        return _stirred(_U(size) + _swapped(low) + high + _folded(low, high))
    if size >= 4:
        word = _U(short_at(data, at + size - 4)) + (_U(short_at(data, at)) << _U(32))
        word ^= word_at(_SECRET, 8) ^ word_at(_SECRET, 16)
        word ^= _turned(word, 49) ^ _turned(word, 24)
        word *= _MIX_2
        word ^= (word >> _U(35)) + _U(size)
        word *= _MIX_2
        return word ^ word >> _U(28)
    if size == 0:
        return _spread(word_at(_SECRET, 56) ^ word_at(_SECRET, 64))
    word = _U(data[at]) << _U(16) | _U(data[at + (size >> 1)]) << _U(24)
    word |= _U(data[at + size - 1]) | _U(size) << _U(8)
    return _spread(word ^ _U(short_at(_SECRET, 0)) ^ _U(short_at(_SECRET, 4)))


@borrowing
def _of_many(data: np.ndarray, at: int, size: int) -> np.uint64:
    end, digest = at + size, _U(size) * _PRIME
    if size <= 128:
        for place in range((size - 1) // 32, -1, -1):
            digest += _mixed(data, at + 16 * place, 32 * place)
            digest += _mixed(data, end - 16 * (place + 1), 32 * place + 16)
        return _stirred(digest)
    for place in range(8):
        digest += _mixed(data, at + 16 * place, 16 * place)
    digest = _stirred(digest)
    for place in range(8, size // 16):
        digest += _mixed(data, at + 16 * place, 16 * (place - 8) + 3)
    return _stirred(digest + _mixed(data, end - 16, 119))


@borrowing
def _mixed(data: np.ndarray, at: int, secret: int) -> np.uint64:
    low = word_at(data, at) ^ word_at(_SECRET, secret)
    return _folded(low, word_at(data, at + 8) ^ word_at(_SECRET, secret + 8))


@borrowing
def _folded(a: np.uint64, b: np.uint64) -> np.uint64:
    return a * b ^ high_product(a, b)


@borrowing
def _stirred(word: np.uint64) -> np.uint64:
    word = (word ^ word >> _U(37)) * _MIX_1
    return word ^ word >> _U(32)


@borrowing
def _spread(word: np.uint64) -> np.uint64:
    word = (word ^ word >> _U(33)) * _AVALANCHE_1
    word = (word ^ word >> _U(29)) * _AVALANCHE_2
    return word ^ word >> _U(32)


@borrowing
def _turned(word: np.uint64, bits: int) -> np.uint64:
    return word << _U(bits) | word >> _U(64 - bits)


@borrowing
def _swapped(word: np.uint64) -> np.uint64:
    """Its bytes the other way round."""
    pairs, bytes_ = _U(0x0000FFFF0000FFFF), _U(0x00FF00FF00FF00FF)
    word = word << _U(32) | word >> _U(32)
    word = (word & pairs) << _U(16) | word >> _U(16) & pairs
    return (word & bytes_) << _U(8) | word >> _U(8) & bytes_


compile_now(_hash_each, _hash_pairs)
