"""The stored row: tiles, last-n entries, recent event ids and stamps, as bytes and as columns.

Knows the layout of a row's bytes and how many rows become one set of flat arrays and
back. Does not know what a value means (`features.fold` writes it, `features.finish`
reads it) nor where bytes are kept.

Layout, little endian: HEAD, lanes (LANE each), tiles (TILE), entries (ENTRY), recent
ids (RECENT), the entries' UTF-8 text in their order, and 8 bytes of xxh3 over all
that: the digest is what compare-and-set compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash

VERSION = 1
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
        ("unused", "<u4"),
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
_SECTIONS = (("lanes", LANE), ("tiles", TILE), ("entries", ENTRY), ("recent", RECENT))

# A tile's key: the place of its size in definitions.TILE_SIZES_MS, the counter's slot,
# and event time // size, in one integer, so that one sort brings equal tiles together.
_SIZE_SHIFT, _SLOT_SHIFT = np.uint64(56), np.uint64(40)
_SLOT_MASK, _INDEX_MASK = np.uint64(0xFFFF), np.uint64(2**40 - 1)


def tile_key(size: int, slot: int, index: np.ndarray) -> np.ndarray:
    """uint64 keys of tiles `index` (event time // tile size) of one counter."""
    head = np.uint64(size) << _SIZE_SHIFT | np.uint64(slot) << _SLOT_SHIFT
    return np.asarray(index.astype(np.uint64) | head)


def split_key(key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(size place, slot, index) of tile keys, int64 each."""
    size = (key >> _SIZE_SHIFT).astype(np.int64)
    slot = (key >> _SLOT_SHIFT & _SLOT_MASK).astype(np.int64)
    return size, slot, (key & _INDEX_MASK).astype(np.int64)


def tiles_of_size(key: np.ndarray, size: int) -> np.ndarray:
    """bool: the tile's size is the one at this place."""
    return np.asarray(key >> _SIZE_SHIFT == size)


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


_EMPTY = np.zeros(1, HEAD).tobytes() + bytes(DIGEST_BYTES)


def decode(blobs: Sequence[bytes | None]) -> Rows:
    """Rows in the order of `blobs`; None, and bytes that are no row, become empty rows."""
    whole = [blob if blob is not None and len(blob) >= len(_EMPTY) else _EMPTY for blob in blobs]
    head = np.frombuffer(b"".join([b[: HEAD.itemsize] for b in whole]), HEAD).copy()
    lengths = np.fromiter(map(len, whole), np.int64, len(whole))
    broken = (head["version"] != VERSION) | (_row_bytes(head) != lengths)
    for place in np.flatnonzero(broken):
        whole[place] = _EMPTY
    head[broken] = np.zeros(1, HEAD)[0]
    start = np.full(len(whole), HEAD.itemsize, np.int64)
    sections: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, dtype in _SECTIONS:
        stop = start + head[name].astype(np.int64) * dtype.itemsize
        joined = _slices(whole, start, stop)
        row = np.repeat(np.arange(len(whole)), head[name])
        sections[name] = row, np.frombuffer(joined, dtype)
        start = stop
    text = _slices(whole, start, start + head["text_bytes"])
    entry = sections["entries"][1]
    return Rows(
        head,
        *sections["lanes"],
        *sections["tiles"],
        *sections["entries"],
        _texts(entry["length"], text),
        *sections["recent"],
    )


def _row_bytes(head: np.ndarray) -> np.ndarray:
    total = np.full(len(head), HEAD.itemsize + DIGEST_BYTES, np.int64)
    for name, dtype in _SECTIONS:
        total += head[name].astype(np.int64) * dtype.itemsize
    return total + head["text_bytes"].astype(np.int64)


def _slices(whole: Sequence[bytes], start: np.ndarray, stop: np.ndarray) -> bytes:
    spans = zip(whole, start.tolist(), stop.tolist(), strict=True)
    return b"".join([blob[a:b] for blob, a, b in spans])


def _texts(lengths: np.ndarray, text: bytes) -> pa.LargeBinaryArray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)


def encode(rows: Rows) -> list[bytes]:
    """The bytes of every row; the head's counts and the digest are made here."""
    n = len(rows)
    if n == 0:
        return []
    head = rows.head.copy()
    head["version"] = VERSION
    owners = {
        "lanes": (rows.lane_row, rows.lane),
        "tiles": (rows.tile_row, rows.tile),
        "entries": (rows.entry_row, rows.entry),
        "recent": (rows.recent_row, rows.recent),
    }
    pieces: list[list[bytes]] = []
    for name, dtype in _SECTIONS:
        row, part = owners[name]
        head[name] = np.bincount(row, minlength=n)
        pieces.append(_cut(np.ascontiguousarray(part).tobytes(), head[name], dtype.itemsize))
    length = rows.entry["length"].astype(np.float64)  # exact: far below 2**53
    head["text_bytes"] = np.bincount(rows.entry_row, length, minlength=n).astype(np.int64)
    pieces.append(_cut(_text_bytes(rows.text), head["text_bytes"], 1))
    heads = _cut(head.tobytes(), np.ones(n, np.int64), HEAD.itemsize)
    return [_sealed(b"".join(parts)) for parts in zip(heads, *pieces, strict=True)]


def _text_bytes(text: pa.LargeBinaryArray) -> bytes:
    if len(text) == 0:
        return b""
    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
    data = text.buffers()[2]
    return b"" if data is None else data.to_pybytes()[offsets[0] : offsets[-1]]


def _cut(joined: bytes, counts: np.ndarray, size: int) -> list[bytes]:
    ends = (np.cumsum(counts.astype(np.int64)) * size).tolist()
    starts = [0, *ends[:-1]]
    return [joined[a:b] for a, b in zip(starts, ends, strict=True)]


def _sealed(body: bytes) -> bytes:
    return body + xxhash.xxh3_64_digest(body)


def digest(blob: bytes) -> bytes:
    """What compare-and-set expects to find: 8 bytes that change with every change of a row."""
    return blob[-DIGEST_BYTES:]


def tombstone(erased_ms: int, generation: int, fingerprint: int) -> bytes:
    """A row without events that refuses every event up to `erased_ms`."""
    head = np.zeros(1, HEAD)
    head["version"] = VERSION
    head["fingerprint"], head["generation"] = fingerprint, generation
    head["erased_ms"] = erased_ms
    return _sealed(head.tobytes())


def erased_until(blob: bytes | None) -> int:
    """The event time (ms) up to which a row refuses events; 0: none."""
    if blob is None or not readable(blob):
        return 0
    return int(np.frombuffer(blob, HEAD, 1)[0]["erased_ms"])
