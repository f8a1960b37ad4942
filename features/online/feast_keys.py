"""Feast's own bytes for our rows: Redis keys, hash fields, values and timestamps.

Knows Feast 0.67's Redis layout (entity key serialisation 3) well enough to write it
without importing Feast, whose import takes seconds; a test holds every byte against
Feast's own writer. Does not know connections.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import mmh3
import numpy as np

from features.definitions import EntityDefinition
from features.online.connection import bulk, hget
from features.rows.byte_slices import Spans, given, readable_bytes

ROW_FEATURE = "row"  # the one Bytes feature of each view
READS_KEPT = 65_536  # per entity, about 210 bytes each
_STRING = 2  # ValueType.STRING
GENERATION = b"generation"  # the fact that tells which life of the rows this is
BYTES_TAG = 0x0A  # ValueProto.bytes_val: field 1, length-delimited


def facts_key(project: str) -> bytes:
    """The key of what is known of a project's rows as a whole."""
    return f"tidemill:{project}".encode()


def owner_key(project: str, view: str) -> bytes:
    """The key that tells who owns a view's rows. No other project's facts lie there: they
    begin otherwise, and no view has a colon in its name."""
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
        self.owner_key = owner_key(project, self.view)
        self.row_field = struct.pack("<I", mmh3.hash(f"{self.view}:{ROW_FEATURE}", signed=False))
        self.time_field = f"_ts:{self.view}".encode()
        self._key_ends = _bytes(self._head), _bytes(self._project)
        words = (b"*6\r\n" + bulk(b"HSET"), bulk(self.row_field), bulk(self.time_field))
        self._set_words = tuple(map(_bytes, words))
        self.packed_read = lru_cache(maxsize=READS_KEPT)(self._packed_read)

    def key(self, entity_id: str) -> bytes:
        raw = entity_id.encode()
        return b"".join((self._head, struct.pack("<I", len(raw)), raw, self._project))

    def _packed_read(self, entity_id: str) -> bytes:
        """The command that reads the row's value."""
        return hget(self.key(entity_id), self.row_field)

    def packed_keys(self, ids: Spans) -> bytes:
        """The keys of many ids as RESP bulk strings, one after another."""
        from features.kernels.packing import packed_keys

        packed = packed_keys(readable_bytes(ids.data), given(ids.offsets), *self._key_ends)
        return bytes(packed)

    def packed_sets(self, ids: Spans, rows: Spans, times: np.ndarray) -> memoryview:
        """A command per row that sets it and its event time (int64 [N], ms)."""
        from features.kernels.packing import packed_sets

        found = packed_sets(
            *(readable_bytes(ids.data), given(ids.offsets), *self._key_ends),
            *(readable_bytes(rows.data), given(rows.offsets), BYTES_TAG),
            *(given(times), *self._set_words),
        )
        return memoryview(found)

    def pattern(self) -> bytes:
        """A SCAN pattern that every key of this entity matches (others may: see `entity_id`)."""
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


def unwrap(value: bytes | None) -> bytes | None:
    """The bytes inside a serialised ValueProto; None when it holds no bytes."""
    if not value or value[0] != BYTES_TAG:
        return None
    start = 1
    while value[start] & 0x80:
        start += 1
    return value[start + 1 :]


def timestamp(time_ms: int) -> bytes:
    """A serialised google.protobuf.Timestamp."""
    seconds, rest = divmod(time_ms, 1000)
    return _seconds(seconds) + _nanos(rest)


TIMESTAMP_BYTES = 17  # of the longest: seconds in 11, nanoseconds in 6
_SECONDS = (1 << 28, (1 << 35) - 1)  # 1978 to 3058: their varints have 5 bytes


def timestamps(times_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`timestamp` of each: uint8 [N, TIMESTAMP_BYTES] filled with zeros, and their lengths."""
    found = np.zeros((len(times_ms), TIMESTAMP_BYTES), np.uint8)
    seconds, rest = np.divmod(times_ms, 1000)
    if not ((seconds >= _SECONDS[0]) & (seconds <= _SECONDS[1])).all():
        whole = [timestamp(time_ms) for time_ms in times_ms.tolist()]
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
    """The nanoseconds of every millisecond: uint8 [1000, 6], and their lengths."""
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
