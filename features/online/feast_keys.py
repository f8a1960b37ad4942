"""Rows in Feast's own bytes: Redis keys, hash fields, values and timestamps.

Knows Feast 0.67's Redis layout (entity key serialisation 3) and writes it without importing
Feast, which takes seconds; a test compares every byte with Feast's own writer. Does not know
connections.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import mmh3
import numpy as np

from features.definitions import EntityDefinition
from features.online.connection import bulk_string, pack_hget
from features.rows.byte_slices import ByteSlices, readonly_bytes, readonly_view

ROW_FEATURE = "row"  # the one Bytes feature of each view
DECLARATION_TAG = "tidemill_declaration"  # of a view: JSON that a plain Feast client adopts
CACHED_READS = 65_536  # read commands per entity, about 210 bytes each
_STRING = 2  # ValueType.STRING
REBUILD_ID_FIELD = b"generation"  # of the metadata hash; the stored spelling
BYTES_TAG = 0x0A  # ValueProto.bytes_val: field 1, length-delimited


def metadata_key(project: str) -> bytes:
    """The hash of a project's metadata: rebuild id, fingerprints, cutoff, progress."""
    return f"tidemill:{project}".encode()


def lease_key(project: str, view: str) -> bytes:
    """The key of the lease on a view's rows; its value is the holder's token.

    It collides with no other key: metadata keys start otherwise, and no view name has a colon.
    """
    return f"tidemill owner of {view}:{project}".encode()


def view_name(definition: EntityDefinition) -> str:
    """The feature view that holds an entity's stored rows."""
    return f"{definition.name}_tiles"


class RowFormat:
    """Keys and fields of one entity's rows in one Feast project."""

    def __init__(self, definition: EntityDefinition, project: str) -> None:
        join_key = definition.id_column.encode()
        self._head = struct.pack("<III", 1, _STRING, len(join_key)) + join_key
        self._head += struct.pack("<I", _STRING)
        self._project = project.encode()
        self.view = view_name(definition)
        self.lease_key = lease_key(project, self.view)
        self.row_field = struct.pack("<I", mmh3.hash(f"{self.view}:{ROW_FEATURE}", signed=False))
        self.time_field = f"_ts:{self.view}".encode()
        self._key_ends = _bytes(self._head), _bytes(self._project)
        self._set_words = (
            _bytes(b"*6\r\n" + bulk_string(b"HSET")),
            _bytes(bulk_string(self.row_field)),
            _bytes(bulk_string(self.time_field)),
        )
        self.packed_read = lru_cache(maxsize=CACHED_READS)(self._packed_read)

    def key(self, entity_id: str) -> bytes:
        """The Redis key of one row."""
        raw = entity_id.encode()
        return b"".join((self._head, struct.pack("<I", len(raw)), raw, self._project))

    def _packed_read(self, entity_id: str) -> bytes:
        """The command that reads the row's value."""
        return pack_hget(self.key(entity_id), self.row_field)

    def packed_keys(self, ids: ByteSlices) -> bytes:
        """The keys of many ids as concatenated RESP bulk strings."""
        from features.kernels.packing import packed_keys

        packed = packed_keys(readonly_bytes(ids.data), readonly_view(ids.offsets), *self._key_ends)
        return bytes(packed)

    def packed_sets(self, ids: ByteSlices, rows: ByteSlices, times: np.ndarray) -> memoryview:
        """One packed HSET per row, of the row and its event time (`times`: int64 [N], ms)."""
        from features.kernels.packing import KeyFormat, RowFields, packed_sets

        found = packed_sets(
            *(readonly_bytes(ids.data), readonly_view(ids.offsets), KeyFormat(*self._key_ends)),
            *(readonly_bytes(rows.data), readonly_view(rows.offsets), readonly_view(times)),
            RowFields(*self._set_words, BYTES_TAG),
        )
        return found.data

    def pattern(self) -> bytes:
        """A SCAN pattern that every key of this entity matches; `entity_id` rejects others."""
        return _literal(self._head) + b"*" + _literal(self._project)

    def entity_id(self, key: bytes) -> str | None:
        """The id behind a key; None for a key of another project, entity or view."""
        if not key.startswith(self._head):
            return None
        body = key[len(self._head) :]
        (length,) = struct.unpack_from("<I", body)
        raw, project = body[4 : 4 + length], body[4 + length :]
        return raw.decode() if project == self._project else None


def _bytes(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8)


def _literal(raw: bytes) -> bytes:
    return b"".join(b"\\" + bytes([c]) if bytes([c]) in b"*?[]\\^-" else bytes([c]) for c in raw)


def unwrap_bytes(value: bytes | None) -> bytes | None:
    """The bytes inside a serialised ValueProto; None when it holds no bytes."""
    if not value or value[0] != BYTES_TAG:
        return None
    start = 1
    while value[start] & 0x80:
        start += 1
    return value[start + 1 :]


def encode_timestamp(time_ms: int) -> bytes:
    """`time_ms` as a serialised google.protobuf.Timestamp."""
    seconds, rest = divmod(time_ms, 1000)
    return _seconds(seconds) + _nanos(rest)


TIMESTAMP_BYTES = 17  # at most: seconds in 11, nanoseconds in 6
_SECONDS = (1 << 28, (1 << 35) - 1)  # 1978 to 3058: their varints have 5 bytes


def encode_timestamps(times_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`encode_timestamp` of each: uint8 [N, TIMESTAMP_BYTES], zero-padded; lengths, uint8 [N]."""
    found = np.zeros((len(times_ms), TIMESTAMP_BYTES), np.uint8)
    seconds, rest = np.divmod(times_ms, 1000)
    if not ((seconds >= _SECONDS[0]) & (seconds <= _SECONDS[1])).all():
        whole = [encode_timestamp(time_ms) for time_ms in times_ms.tolist()]
        for place, raw in enumerate(whole):
            found[place, : len(raw)] = list(raw)
        return found, np.array(list(map(len, whole)), np.uint8)
    found[:, 0] = 0x08
    for place in range(5):
        found[:, 1 + place] = seconds >> 7 * place & 0x7F | (0x80 if place < 4 else 0)
    nanos, length = _all_nanos()
    found[:, 6:12] = nanos[rest]
    return found, 6 + length[rest]


@lru_cache(maxsize=1)
def _all_nanos() -> tuple[np.ndarray, np.ndarray]:
    """The nanoseconds field of every millisecond: uint8 [1000, 6], and uint8 [1000] lengths."""
    each = [_nanos(rest) for rest in range(1000)]
    padded = b"".join(raw.ljust(6, b"\0") for raw in each)
    lengths = np.array(list(map(len, each)), np.uint8)
    return np.frombuffer(padded, np.uint8).reshape(1000, 6), lengths


@lru_cache(maxsize=65_536)
def _seconds(seconds: int) -> bytes:
    return b"\x08" + _varint(seconds) if seconds else b""


@lru_cache(maxsize=1000)
def _nanos(rest_ms: int) -> bytes:
    return b"\x10" + _varint(rest_ms * 1_000_000) if rest_ms else b""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
