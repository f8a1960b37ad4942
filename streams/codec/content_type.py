"""What a message is written in: its header `content-type` says so, and without one it is JSON.

Knows content types and which reader each has. Does not read messages itself
(`streams.codec.decode`, `streams.codec.protobuf`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from streams.bus.contract import Record, polled
from streams.codec import decode, protobuf
from streams.codec.decode import DECODED_SCHEMA, MAX_EVENT_BYTES, Decoded, Refusal, in_order
from streams.contract.protobuf_schema import VERSION

CONTENT_TYPE = "content-type"
JSON, PROTOBUF = b"application/json", f"application/x-protobuf; v={VERSION}".encode()
_PROTOBUF_TYPES = {"application/x-protobuf", "application/protobuf"}

Reader = Callable[[Sequence[bytes | None], int], Decoded]


def decode_records(records: Sequence[Record], max_bytes: int = MAX_EVENT_BYTES) -> Decoded:
    """Every record is either a row of `table` or one `Refusal`, whatever its neighbours are."""
    poll = polled(records)
    if not poll.any_headers:
        return decode.decode(poll.values, max_bytes)
    types = [record.header(CONTENT_TYPE) for record in records]
    if len(set(types)) == 1:
        return _reader(types[0])(poll.values, max_bytes)
    rows_of: dict[Reader, list[int]] = defaultdict(list)
    for row, content_type in enumerate(types):
        rows_of[_reader(content_type)].append(row)
    return _together(
        [_read(poll.values, reader, rows, max_bytes) for reader, rows in rows_of.items()]
    )


@lru_cache(maxsize=256)
def _reader(content_type: bytes | None) -> Reader:
    """The reader that a header names, or one that refuses with what could be sent instead."""
    if not content_type:
        return decode.decode
    media, *parameters = content_type.decode("latin-1").lower().replace(" ", "").split(";")
    if media.endswith(("/json", "+json")):
        return decode.decode
    stated = dict(parameter.partition("=")[::2] for parameter in parameters)
    if media in _PROTOBUF_TYPES and stated.get("v", str(VERSION)) == str(VERSION):
        return protobuf.decode
    known = f"send {JSON.decode()!r}, which is also meant by no header, or {PROTOBUF.decode()!r}"
    return _refusing(f"content-type {media[:100]!r} is not read here: {known}")


def _refusing(detail: str) -> Reader:
    def refuse(values: Sequence[bytes | None], _: int) -> Decoded:
        refused = [Refusal(row, "unknown_format", detail) for row in range(len(values))]
        return Decoded(np.empty(0, dtype=np.int64), DECODED_SCHEMA.empty_table(), refused)

    return refuse


def _read(
    values: Sequence[bytes | None], reader: Reader, rows: Sequence[int], max_bytes: int
) -> Decoded:
    """What `reader` makes of the values at `rows`, with the rows of the whole poll."""
    found = reader([values[row] for row in rows], max_bytes)
    refused = [replace(refusal, row=rows[refusal.row]) for refusal in found.refused]
    return Decoded(np.asarray(rows, dtype=np.int64)[found.rows], found.table, refused)


def _together(parts: Sequence[Decoded]) -> Decoded:
    if len(parts) == 1:
        return parts[0]
    rows, table = in_order([(part.rows, part.table) for part in parts])
    return Decoded(rows, table, [refusal for part in parts for refusal in part.refused])
