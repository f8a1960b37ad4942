"""The stored row: tiles, last-n entries, recent event ids and stamps, as bytes and as columns.

Knows the layout of a row's bytes and how many rows become one set of flat arrays. Does
not know what a value means (`features.rows.aggregate` writes it, `features.rows.finalize` reads it, each by
compiled loops over the bytes) nor where bytes are kept.

Layout, little endian: HEAD, lanes (LANE each), tiles (8 bytes each: the key above the
value), wide tiles (TILE: what 8 bytes do not hold), entries (ENTRY), recent ids (RECENT),
the entries' UTF-8 text in their order, and 8 bytes of XXH64 over all that: the digest is
what compare-and-set compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from features.rows.byte_slices import Spans, offsets_of, taken

VERSION = 2  # of this layout; a store whose rows have another is rebuilt from the log
FOREVER_MS = 2**63 - 1
DIGEST_BYTES = 8

HEAD = np.dtype(
    [
        ("version", "<u2"),
        ("lanes", "<u2"),
        ("fingerprint", "<u4"),  # of the declarations the row was folded by
        ("generation", "<u4"),  # of the rebuild that the row belongs to
        ("tiles", "<u4"),
        ("entries", "<u4"),
        ("recent", "<u4"),
        ("text_bytes", "<u4"),
        ("wide", "<u4"),
        ("last_event_ms", "<i8"),  # 0: no event is counted (a tombstone)
        ("erased_ms", "<i8"),  # events up to this event time are never folded; 0: none
    ]
)
LANE = np.dtype([("epoch", "<u8"), ("partition", "<i8"), ("offset", "<i8")])
TILE = np.dtype([("key", "<u8"), ("value", "<i8")])
ENTRY = np.dtype(
    [("time", "<i8"), ("hash", "<u8"), ("list", "u1"), ("kind", "u1"), ("length", "<u4")]
)
RECENT = np.dtype([("time", "<i8"), ("hash", "<u8")])
_NARROW = np.dtype("<u8")
_SECTIONS = (
    *(("lanes", LANE), ("tiles", _NARROW), ("wide", TILE)),
    *(("entries", ENTRY), ("recent", RECENT)),
)

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


@dataclass
class Rows:
    """N rows as flat arrays. Each section lists its rows' parts in row order.

    `*_row` (int64) names the row of each part. `text` holds one UTF-8 string per entry.
    """

    head: np.ndarray  # HEAD [N]
    lane_row: np.ndarray
    lane: np.ndarray  # LANE, oldest first within a row
    tile_row: np.ndarray
    tile: np.ndarray  # TILE
    entry_row: np.ndarray
    entry: np.ndarray  # ENTRY, by list, newest first
    text: pa.LargeBinaryArray
    recent_row: np.ndarray
    recent: np.ndarray  # RECENT

    def __len__(self) -> int:
        return len(self.head)


def readable(blob: bytes | None) -> bool:
    """Whether these bytes are a whole row of this version (of any declarations)."""
    if blob is None or len(blob) < HEAD.itemsize + DIGEST_BYTES:
        return False
    head = np.frombuffer(blob, HEAD, 1)[0]
    return int(head["version"]) == VERSION and len(blob) == _sizes(head)


def _sizes(head: np.ndarray) -> int:
    parts = sum(int(head[name]) * dtype.itemsize for name, dtype in _SECTIONS)
    return int(HEAD.itemsize + parts + int(head["text_bytes"]) + DIGEST_BYTES)


_SHORTEST = HEAD.itemsize + DIGEST_BYTES
_PARTS = len(_SECTIONS) + 3  # of a row's bytes: head, sections, text, digest


def decode(blobs: Sequence[bytes | None]) -> Rows:
    """Rows in the order of `blobs`; None, and bytes that are no row, become empty rows."""
    return decode_spans(Spans.of(blobs))


def decode_spans(spans: Spans) -> Rows:
    """Rows in the order of the spans; bytes that are no row become empty rows."""
    n, head = len(spans), _heads(spans)
    cuts = _cuts(spans.offsets, head)
    part = [
        taken(spans.data, cuts, np.arange(place, n * _PARTS, _PARTS))
        for place in range(1, _PARTS - 1)
    ]
    row = [np.repeat(np.arange(n), head[name]) for name, _ in _SECTIONS]
    lane, narrow, wide, entry, recent = (
        np.frombuffer(raw, dtype) for raw, (_, dtype) in zip(part[:-1], _SECTIONS, strict=True)
    )
    tile_row, tile = _with_wide(row[1], _widened(narrow), row[2], wide)
    text = _texts(entry["length"], part[-1])
    return Rows(head, row[0], lane, tile_row, tile, row[3], entry, text, row[4], recent)


def _widened(narrow: np.ndarray) -> np.ndarray:
    tile = np.empty(len(narrow), TILE)
    tile["key"] = narrow >> np.uint64(NARROW_BITS)
    tile["value"] = narrow & np.uint64(2**NARROW_BITS - 1)
    return tile


def _with_wide(
    row: np.ndarray, tile: np.ndarray, wide_row: np.ndarray, wide: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both kinds of tiles by row and key; few rows have wide ones."""
    if not len(wide):
        return row, tile
    row, tile = np.concatenate([row, wide_row]), np.concatenate([tile, wide])
    order = np.argsort(row, kind="stable")
    mixed = np.flatnonzero(np.isin(row[order], wide_row))
    places = order[mixed]
    order[mixed] = places[np.lexsort((tile["key"][places], row[places]))]
    return row[order], tile[order]


def _heads(spans: Spans) -> np.ndarray:
    """HEAD [N]; zeros where the bytes are no whole row."""
    head, lengths = np.zeros(len(spans), HEAD), spans.lengths
    long = np.flatnonzero(lengths >= _SHORTEST)
    cuts = np.empty((len(long), 2), np.int64)
    cuts[:, 0] = spans.offsets[:-1][long]
    cuts[:, 1] = cuts[:, 0] + HEAD.itemsize
    places = np.arange(0, cuts.size, 2)
    ends = np.append(cuts.ravel(), len(spans.data))
    head[long] = np.frombuffer(taken(spans.data, ends, places), HEAD)
    head[(head["version"] != VERSION) | (_row_bytes(head) != lengths)] = np.zeros(1, HEAD)[0]
    return head


def _cuts(bounds: np.ndarray, head: np.ndarray) -> np.ndarray:
    """int64: where each part of each row ends, after the 0 where all begins."""
    ends = np.empty((len(head), _PARTS), np.int64)
    ends[:, 0] = bounds[:-1] + HEAD.itemsize
    for place, (name, dtype) in enumerate(_SECTIONS, start=1):
        ends[:, place] = ends[:, place - 1] + head[name].astype(np.int64) * dtype.itemsize
    ends[:, -2] = ends[:, -3] + head["text_bytes"]
    ends[:, -1] = bounds[1:]
    return np.append(0, np.minimum(ends, bounds[1:, None]).ravel())


def _row_bytes(head: np.ndarray) -> np.ndarray:
    total = np.full(len(head), HEAD.itemsize + DIGEST_BYTES, np.int64)
    for name, dtype in _SECTIONS:
        total += head[name].astype(np.int64) * dtype.itemsize
    return total + head["text_bytes"].astype(np.int64)


def _texts(lengths: np.ndarray, text: np.ndarray) -> pa.LargeBinaryArray:
    buffers = [None, pa.py_buffer(offsets_of(lengths)), pa.py_buffer(text)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)


def digests(spans: Spans) -> np.ndarray:
    """What compare-and-set expects to find, uint8 [N, 8]: digests, zeros for empty spans."""
    found = np.zeros((len(spans), DIGEST_BYTES), np.uint8)
    rows = np.flatnonzero(spans.lengths >= DIGEST_BYTES)
    ends = spans.offsets[1:][rows, None]
    found[rows] = spans.data[ends + np.arange(-DIGEST_BYTES, 0)]
    return found


def tombstone(erased_ms: int, generation: int, fingerprint: int) -> bytes:
    """A row without events that refuses every event up to `erased_ms`."""
    head = np.zeros(1, HEAD)
    head["version"] = VERSION
    head["fingerprint"], head["generation"] = fingerprint, generation
    head["erased_ms"] = erased_ms
    body = head.tobytes()
    return body + xxhash.xxh64_intdigest(body).to_bytes(DIGEST_BYTES, "little")


def erased_until(blob: bytes | None) -> int:
    """The event time (ms) up to which a row refuses events; 0: none."""
    if blob is None or not readable(blob):
        return 0
    return int(np.frombuffer(blob, HEAD, 1)[0]["erased_ms"])
