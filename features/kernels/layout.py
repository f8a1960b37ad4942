"""The layout of a stored row: dtypes and constants. Changing one asks for a new VERSION.

Knows bytes. Does not know how rows are written (`features.kernels.fold`), read
(`features.kernels.finalize`, `features.rows.decode`) or kept.

Little endian: HEAD, source offsets (SOURCE_OFFSET each), tiles (8 bytes each: the key above the
value), wide tiles (TILE: what 8 bytes do not hold), entries (ENTRY), recent ids (RECENT), the
entries' UTF-8 text in their order, and 8 bytes of XXH64 over all that: the digest is what
compare-and-set compares.
"""

from __future__ import annotations

import numpy as np

VERSION = 2  # of this layout; a store whose rows have another is rebuilt from the log
DIGEST_BYTES = 8

HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("source_offsets", "<u2"),
        ("fingerprint", "<u4"),  # of the declarations the row was folded by
        ("rebuild_id", "<u4"),
        ("tiles", "<u4"),
        ("entries", "<u4"),
        ("recent", "<u4"),
        ("text_bytes", "<u4"),
        ("wide", "<u4"),
        ("last_event_ms", "<i8"),  # 0: no event is counted (a tombstone)
        ("erased_ms", "<i8"),  # events up to this event time are never folded; 0: none
    ]
)
SOURCE_OFFSET = np.dtype([("topic_id", "<u8"), ("partition", "<i8"), ("offset", "<i8")])
TILE = np.dtype([("key", "<u8"), ("value", "<i8")])
ENTRY = np.dtype(
    [("time", "<i8"), ("hash", "<u8"), ("list", "u1"), ("kind", "u1"), ("length", "<u4")]
)
RECENT = np.dtype([("time", "<i8"), ("hash", "<u8")])
HEAD_BYTES, SOURCE_OFFSET_BYTES, TILE_BYTES, ENTRY_BYTES, RECENT_BYTES = (
    part.itemsize for part in (HEAD, SOURCE_OFFSET, TILE, ENTRY, RECENT)
)
NARROW_TILE_BYTES = 8

# A tile's key: the place of its size in definitions.TILE_SIZES_MS, the counter's slot, and
# event time // size, in one integer, so that one sort brings equal tiles together. The low
# 32 bits hold any tile of the first 32 slots until the year 2289; the rest lies above them.
INDEX_BITS, SLOT_BITS, HIGH_BITS = 25, 5, 15
NARROW_BITS = 32  # of a key, and of a value, that a tile of 8 bytes holds
_LOW_INDEX, _LOW_SLOT = 2**INDEX_BITS - 1, 2**SLOT_BITS - 1
_HIGH_INDEX, _SIZE_SHIFT = 2**HIGH_BITS - 1, INDEX_BITS + SLOT_BITS


def tile_key(size: int, slot: int, index: np.ndarray) -> np.ndarray:
    """uint64 keys of tiles `index` (event time // tile size, under 2**40) of one counter."""
    low = size << _SIZE_SHIFT | (slot & _LOW_SLOT) << INDEX_BITS
    high = slot >> SLOT_BITS << HIGH_BITS
    fixed = np.uint64(low | high << NARROW_BITS)
    above = (index >> INDEX_BITS & _HIGH_INDEX) << NARROW_BITS
    return np.asarray((index & _LOW_INDEX | above).astype(np.uint64) | fixed)


def split_key(key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(size place, slot, index) of tile keys, int64 each."""
    low = (key & np.uint64(2**NARROW_BITS - 1)).astype(np.int64)
    high = (key >> np.uint64(NARROW_BITS)).astype(np.int64)
    slot = low >> INDEX_BITS & _LOW_SLOT | high >> HIGH_BITS << SLOT_BITS
    index = low & _LOW_INDEX | (high & _HIGH_INDEX) << INDEX_BITS
    return low >> _SIZE_SHIFT, slot, index
