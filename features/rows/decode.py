"""Stored rows as columns: the plain form of what compiled code reads and writes as bytes.

Knows the layout of a row's bytes (`features.kernels.layout`) and how many rows become one set of
flat arrays. Does not know what a value means (`features.rows.aggregate` writes it,
`features.rows.finalize` reads it) or where rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

from features.kernels.layout import (
    DIGEST_BYTES,
    ENTRY,
    HEAD,
    NARROW_BITS,
    RECENT,
    SOURCE_OFFSET,
    TILE,
    VERSION,
)
from features.rows.byte_slices import ByteSlices, offsets_from_lengths, take_slices

FOREVER_MS = 2**63 - 1
_NARROW = np.dtype("<u8")
_SECTIONS = (
    *(("source_offsets", SOURCE_OFFSET), ("tiles", _NARROW), ("wide", TILE)),
    *(("entries", ENTRY), ("recent", RECENT)),
)


@dataclass
class DecodedRows:
    """N rows as flat arrays. Each section lists its rows' parts in row order.

    `*_row` (int64) names the row of each part. `text` holds one UTF-8 string per entry.
    """

    head: np.ndarray  # HEAD [N]
    source_offset_row: np.ndarray
    source_offset: np.ndarray  # SOURCE_OFFSET, oldest first within a row
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


def decode(blobs: Sequence[bytes | None]) -> DecodedRows:
    """DecodedRows in the order of `blobs`; None, and bytes that are no row, become empty rows."""
    return decode_slices(ByteSlices.from_list(blobs))


def decode_slices(rows: ByteSlices) -> DecodedRows:
    """DecodedRows in the order of the slices; bytes that are no row become empty rows."""
    n, head = len(rows), _heads(rows)
    cuts = _cuts(rows.offsets, head)
    part = [
        take_slices(rows.data, cuts, np.arange(place, n * _PARTS, _PARTS))
        for place in range(1, _PARTS - 1)
    ]
    row = [np.repeat(np.arange(n), head[name]) for name, _ in _SECTIONS]
    source, narrow, wide, entry, recent = (
        np.frombuffer(raw, dtype) for raw, (_, dtype) in zip(part[:-1], _SECTIONS, strict=True)
    )
    tile_row, tile = _with_wide(row[1], _widened(narrow), row[2], wide)
    text = _texts(entry["length"], part[-1])
    return DecodedRows(head, row[0], source, tile_row, tile, row[3], entry, text, row[4], recent)


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


def _heads(rows: ByteSlices) -> np.ndarray:
    """HEAD [N]; zeros where the bytes are no whole row."""
    head, lengths = np.zeros(len(rows), HEAD), rows.lengths
    long = np.flatnonzero(lengths >= _SHORTEST)
    cuts = np.empty((len(long), 2), np.int64)
    cuts[:, 0] = rows.offsets[:-1][long]
    cuts[:, 1] = cuts[:, 0] + HEAD.itemsize
    places = np.arange(0, cuts.size, 2)
    ends = np.append(cuts.ravel(), len(rows.data))
    head[long] = np.frombuffer(take_slices(rows.data, ends, places), HEAD)
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
    buffers = [None, pa.py_buffer(offsets_from_lengths(lengths)), pa.py_buffer(text)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)


def digests(rows: ByteSlices) -> np.ndarray:
    """What compare-and-set expects to find, uint8 [N, 8]: digests, zeros for empty rows."""
    found = np.zeros((len(rows), DIGEST_BYTES), np.uint8)
    place = np.flatnonzero(rows.lengths >= DIGEST_BYTES)
    ends = rows.offsets[1:][place, None]
    found[place] = rows.data[ends + np.arange(-DIGEST_BYTES, 0)]
    return found


def tombstone(erased_ms: int, rebuild_id: int, fingerprint: int) -> bytes:
    """A row without events that refuses every event up to `erased_ms`."""
    head = np.zeros(1, HEAD)
    head["version"] = VERSION
    head["fingerprint"], head["rebuild_id"] = fingerprint, rebuild_id
    head["erased_ms"] = erased_ms
    body = head.tobytes()
    return body + xxhash.xxh64_intdigest(body).to_bytes(DIGEST_BYTES, "little")


def erased_until(blob: bytes | None) -> int:
    """The event time (ms) up to which a row refuses events; 0: none."""
    if blob is None or not readable(blob):
        return 0
    return int(np.frombuffer(blob, HEAD, 1)[0]["erased_ms"])
