"""A tile's key, taken apart and put together in compiled code, one at a time.

Knows the bits of a key. The plain forms, of many keys, are `features.kernels.layout.split_key`
and `tile_key`.
"""

from __future__ import annotations

import numpy as np

from features.kernels.layout import HIGH_BITS, INDEX_BITS, NARROW_BITS, SLOT_BITS
from streams.kernels.compile import borrowing

_INDEX, _SLOT, _HIGH = 2**INDEX_BITS - 1, 2**SLOT_BITS - 1, 2**HIGH_BITS - 1
_LOW, _SIZE_SHIFT = 2**NARROW_BITS - 1, INDEX_BITS + SLOT_BITS
_INDEX_BITS, _NARROW_BITS = np.uint64(INDEX_BITS), np.uint64(NARROW_BITS)
_LOW_INDEX, _HIGH_INDEX = np.uint64(_INDEX), np.uint64(_HIGH)


@borrowing
def split_one(key: int) -> tuple[int, int, int]:
    """(size place, slot, index)."""
    high = key >> NARROW_BITS & _LOW
    slot = key >> INDEX_BITS & _SLOT | high >> HIGH_BITS << SLOT_BITS
    return key >> _SIZE_SHIFT & 3, slot, key & _INDEX | (high & _HIGH) << INDEX_BITS


@borrowing
def index_part(index: np.uint64) -> np.uint64:
    """The bits that an index (event time // tile size) adds to the key of index 0."""
    return index & _LOW_INDEX | (index >> _INDEX_BITS & _HIGH_INDEX) << _NARROW_BITS
