"""The columnar form of admitted events: one Arrow schema for batches and for the log.

Knows column names, dtypes and units. Does not know where batches travel.
Version 1. A new optional column is appended with a null default; a reader fills a
column that an older batch lacks with nulls and drops one that it does not know.
"""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa

from streams.contract.declaration import contract
from streams.contract.signals import Signals

SCHEMA_VERSION = 1

EVENT_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("kind", pa.uint8(), nullable=False),  # a signal's number
        pa.field("event_time_ms", pa.int64(), nullable=False),
        pa.field("ingested_at_ms", pa.int64(), nullable=False),  # stamped by admission
        pa.field("surface", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("request_id", pa.string()),
        pa.field("impression", pa.string()),
        pa.field("video_id", pa.string()),
        pa.field("author_id", pa.string()),
        pa.field("provenance", pa.string()),
        pa.field("query", pa.string()),
        pa.field("dwell_ms", pa.int32()),
        pa.field("amount_cents", pa.int64()),
        pa.field("late", pa.bool_(), nullable=False),  # decided once, by admission
        pa.field("duplicate", pa.bool_(), nullable=False),  # decided once, in the user's order
        pa.field("source_partition", pa.int32(), nullable=False),  # of the topic `behaviour`
        pa.field("source_offset", pa.int64(), nullable=False),
    ]
)

_STAMPED = {"ingested_at_ms", "late", "duplicate", "source_partition", "source_offset"}
DECODED_SCHEMA = pa.schema([field for field in EVENT_SCHEMA if field.name not in _STAMPED])
"""The columns that a producer states; ingest stamps the others."""

# Threads cost more than they save: several times the work where a message is small.
_WRITE = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ = pa.ipc.IpcReadOptions(use_threads=False)
_MAX_CACHED_SCHEMAS = 64  # writers use a few


# Columns of declared signals only: other stacks' rows do not have them.
_ADDED = {
    "value": pa.field("value", pa.float64()),
    "text": pa.field("text", pa.string()),
}


def event_schema() -> pa.Schema:
    """EVENT_SCHEMA and the columns that declared signals add to it."""
    return with_added_columns(EVENT_SCHEMA, contract().signals)


def decoded_schema() -> pa.Schema:
    """DECODED_SCHEMA and the columns that declared signals add to it."""
    return with_added_columns(DECODED_SCHEMA, contract().signals)


@lru_cache(maxsize=16)
def with_added_columns(schema: pa.Schema, signals: Signals) -> pa.Schema:
    """The schema and the columns that these signals add to it."""
    added = [_ADDED[name] for name in signals.added_columns]
    return pa.schema([*schema, *added]) if added else schema


def event_columns(*names: str) -> pa.Schema:
    """Some of `event_schema`'s columns, in its order."""
    return pa.schema([field for field in event_schema() if field.name in names])


def to_ipc(batch: pa.RecordBatch) -> bytes:
    """One Arrow-IPC stream with LZ4 buffers, ready to be a Kafka message."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_WRITE) as writer:
        writer.write_batch(batch)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


def from_ipc(payload: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Reads `to_ipc`'s bytes and conforms them to `schema` (default: `event_schema`); missing
    columns become nulls."""
    with pa.ipc.open_stream(payload, options=_READ) as reader:
        table = reader.read_all()
    return conform(table, event_schema() if schema is None else schema)


class BatchReader:
    """`from_ipc` for many batches of which some columns are read: others are not decompressed."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._options: dict[bytes, pa.ipc.IpcReadOptions] = {}  # by the batch's own schema

    def __call__(self, payload: bytes) -> pa.Table:
        head = payload[: 8 + int.from_bytes(payload[4:8], "little")]
        if (options := self._options.get(head)) is None:
            options = self._options[head] = self._included_fields(payload)
        with pa.ipc.open_stream(payload, options=options) as reader:
            return conform(reader.read_all(), self.schema)

    def _included_fields(self, payload: bytes) -> pa.ipc.IpcReadOptions:
        if len(self._options) >= _MAX_CACHED_SCHEMAS:
            self._options.clear()
        with pa.ipc.open_stream(payload, options=_READ) as reader:
            names = reader.schema.names
        wanted = [index for index, name in enumerate(names) if name in self.schema.names]
        return pa.ipc.IpcReadOptions(use_threads=False, included_fields=wanted)


def conform(table: pa.Table, schema: pa.Schema = EVENT_SCHEMA) -> pa.Table:
    """Columns in `schema`'s order and dtypes; a missing column becomes nulls.

    Raises:
        ValueError: a required column (not nullable) is missing.
    """
    if table.schema.equals(schema):
        return table
    names = set(table.column_names)
    missing = [f.name for f in schema if not f.nullable and f.name not in names]
    if missing:
        raise ValueError(f"the batch lacks required columns: {missing}")
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
