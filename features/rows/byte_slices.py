"""Spans of bytes cut out and put together, many at a time.

Knows offsets. Does not know what the bytes mean. Slicing row by row costs more than the
fold itself; Arrow's `take` copies each span in some ten nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 [P + 1]: where spans of these lengths begin and end when they lie in a row."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True)
class Spans:
    """P spans of bytes in one buffer: span p lies between offsets p and p + 1."""

    data: np.ndarray  # uint8, to be read only
    offsets: np.ndarray  # int64 [P + 1]

    @classmethod
    def of(cls, words: Sequence[bytes | None]) -> Spans:
        """None becomes an empty span."""
        whole = [word or b"" for word in words]
        lengths = np.fromiter(map(len, whole), np.int64, len(whole))
        return cls(np.frombuffer(b"".join(whole), np.uint8), offsets_of(lengths))

    @classmethod
    def of_array(cls, words: pa.Array) -> Spans:
        """An Arrow array of strings or bytes, without nulls; copies no bytes."""
        large = words.cast(pa.large_binary())
        _, offsets, data = large.buffers()
        bounds = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
        return cls(np.frombuffer(data or b"", np.uint8), bounds)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, order: np.ndarray) -> Spans:
        return Spans(taken(self.data, self.offsets, order), offsets_of(self.lengths[order]))

    def part(self, first: int, stop: int) -> Spans:
        """Some in a row; copies no bytes."""
        return Spans(self.data, self.offsets[first : stop + 1])

    def to_list(self) -> list[bytes]:
        whole, bounds = self.data.tobytes(), self.offsets.tolist()
        return [whole[a:b] for a, b in pairwise(bounds)]


def taken(data: bytes | np.ndarray, offsets: np.ndarray, order: np.ndarray) -> np.ndarray:
    """uint8: the spans `order` of `data`, one after another; span p is between offsets p, p + 1."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    spans = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    found = spans.take(pa.array(order)).buffers()[2]
    return np.zeros(0, np.uint8) if found is None else np.frombuffer(found, np.uint8)


def readable_bytes(array: np.ndarray) -> np.ndarray:
    """Any array's bytes, uint8 and read-only: one type for compiled code, whoever owns them."""
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    view.flags.writeable = False
    return view


def given(array: np.ndarray) -> np.ndarray:
    """The array contiguous and read-only: one type for compiled code, whoever owns its memory
    (Arrow's is read-only anyway)."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
