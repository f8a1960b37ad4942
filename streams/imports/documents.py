"""JSON documents of other systems' webhooks as events, by a shipped mapping.

Knows mappings of events in JSON. Does not know HTTP. Files are `streams.imports.source`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

import duckdb
import orjson
import pyarrow as pa

from streams.imports.mapping import BadMapping, Mapping, shipped, shipped_text
from streams.imports.sql import JSON_COLUMN, RowSql, identifier


class Mapped(NamedTuple):
    """The events as JSON, and how many rows the mapping leaves out."""

    events: list[bytes]
    left_out: int


def mapped(documents: Sequence[bytes], name: str, now_ms: int) -> Mapped:
    """The events in these documents.

    Raises:
        BadMapping: there is no such mapping for JSON events, or a document is no JSON object.
    """
    mapping = _mapping(name)
    for place, document in enumerate(documents):
        _refuse_unreadable(document, place)
    table = pa.table({JSON_COLUMN: [document.decode() for document in documents]})
    connection = duckdb.connect()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET threads = 1")
        connection.register("documents", table)
        # A document without an id of its own gets one from its bytes: sent again, it counts once.
        query = RowSql(mapping, None).query(identifier("documents"), _digest(documents), 0, now_ms)
        rows = connection.sql(query).to_arrow_table().to_pylist()
    finally:
        connection.close()
    events = [str(row["body"]).encode() for row in rows if row["kind"] is not None]
    return Mapped(events, len(rows) - len(events))


def _refuse_unreadable(document: bytes, place: int) -> None:
    try:
        found = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise BadMapping(f"element {place} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadMapping(f"element {place} is no JSON object")


def _digest(documents: Sequence[bytes]) -> str:
    return sha256(b"\n".join(documents)).hexdigest()


@lru_cache(maxsize=32)
def _mapping(name: str) -> Mapping:
    shipped_text(name)
    mapping = shipped()[name]
    if mapping.target != "events" or mapping.format not in (None, "json"):
        raise BadMapping(f"the mapping {name!r} is for files, not for JSON events")
    return mapping
