"""Spans of bytes cut out and put together, many at a time.

Knows offsets. Does not know what the bytes mean. Slicing row by row costs more than the
fold itself; Arrow's `take` copies each span in some ten nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

Bytes = bytes | np.ndarray


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """int64 [P + 1]: where spans of these lengths begin and end when they lie in a row."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def taken(data: Bytes, offsets: np.ndarray, order: np.ndarray) -> np.ndarray:
    """uint8: the spans `order` of `data`, one after another; span p is between offsets p, p + 1."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    spans = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    found = spans.take(pa.array(order)).buffers()[2]
    return np.zeros(0, np.uint8) if found is None else np.frombuffer(found, np.uint8)


def woven(pieces: Sequence[tuple[Bytes, np.ndarray]], order: np.ndarray) -> np.ndarray:
    """uint8: spans of several pieces, each (its bytes, int64 lengths of its spans), in `order`.

    Spans are numbered through all pieces.
    """
    flat = [as_bytes(data) for data, _ in pieces]
    lengths = np.concatenate([length for _, length in pieces])
    return taken(np.concatenate(flat), offsets_of(lengths), order)


def as_bytes(data: Bytes) -> np.ndarray:
    """uint8 view of bytes or of any contiguous array."""
    if isinstance(data, bytes):
        return np.frombuffer(data, np.uint8)
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
