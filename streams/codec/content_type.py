"""Choose a decoder by the header `content-type`; a message without one is JSON.

Serializers of a schema registry write no such header. Without one, a framed message
(`streams.codec.framing`) is Protobuf where no JSON text can begin as it does.

Knows content types and the decoder of each. Does not know the formats themselves
(`streams.codec.decode`, `streams.codec.protobuf`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from streams.bus.polled import Record, polled
from streams.codec.decode import (
    MAX_EVENT_BYTES,
    Decoded,
    RejectedMessage,
    Rejection,
    decode_json,
    merge_decoded,
    validate_json_message,
)
from streams.codec.framing import HEADER_BYTES, is_framed
from streams.codec.protobuf import decode_protobuf, validate_framed_protobuf
from streams.contract.events import Event
from streams.contract.protobuf_schema import VERSION, VERSIONS
from streams.contract.schema import decoded_schema

CONTENT_TYPE = "content-type"
JSON, PROTOBUF = b"application/json", f"application/x-protobuf; v={VERSION}".encode()
_VERSIONS = {str(number): version for number, version in VERSIONS.items()}
_JSON_BEGINS = b"{[ \t\r\n"
_PROTOBUF_TYPES = {"application/x-protobuf", "application/protobuf"}

Decoder = Callable[[Sequence[bytes | None], int], Decoded]


def decode_records(records: Sequence[Record], max_bytes: int = MAX_EVENT_BYTES) -> Decoded:
    """Turns every record into a row of `table` or a `RejectedMessage`. Raises nothing."""
    poll = polled(records)
    if not poll.any_headers:
        return _decode_unstated(poll.values, max_bytes)
    types = [record.header(CONTENT_TYPE) for record in records]
    if len(set(types)) == 1:
        return _decoder_of(types[0])(poll.values, max_bytes)
    rows_of: dict[Decoder, list[int]] = defaultdict(list)
    for row, content_type in enumerate(types):
        rows_of[_decoder_of(content_type)].append(row)
    return merge_decoded(
        [_decode_rows(poll.values, decoder, rows, max_bytes) for decoder, rows in rows_of.items()]
    )


@lru_cache(maxsize=256)
def _decoder_of(content_type: bytes | None) -> Decoder:
    """The decoder that a header names, or one that rejects all and states the fix."""
    if not content_type:
        return _decode_unstated
    media, *parameters = content_type.decode("latin-1").lower().replace(" ", "").split(";")
    if media.endswith(("/json", "+json")):
        return decode_json
    stated = dict(parameter.partition("=")[::2] for parameter in parameters)
    if media in _PROTOBUF_TYPES and (version := _VERSIONS.get(stated.get("v", str(VERSION)))):
        return partial(decode_protobuf, version=version)
    known = f"send {JSON.decode()!r} (the default without a header) or {PROTOBUF.decode()!r}"
    return _reject_all(f"content-type {media[:100]!r} is not supported: {known}")


def _decode_unstated(values: Sequence[bytes | None], max_bytes: int) -> Decoded:
    return decode_json(values, max_bytes, _validate_unstated)


def _validate_unstated(value: bytes | None, max_bytes: int) -> Event | Rejection:
    """JSON, or framed Protobuf: JSON begins with a brace or a space."""
    if value and len(value) <= max_bytes and is_framed(value):
        begins = value[HEADER_BYTES : HEADER_BYTES + 1]
        if begins and begins not in _JSON_BEGINS:
            return validate_framed_protobuf(value)
    return validate_json_message(value, max_bytes)


def _reject_all(detail: str) -> Decoder:
    def reject(values: Sequence[bytes | None], _: int) -> Decoded:
        rejected = [RejectedMessage(row, "unknown_format", detail) for row in range(len(values))]
        return Decoded(np.empty(0, dtype=np.int64), decoded_schema().empty_table(), rejected)

    return reject


def _decode_rows(
    values: Sequence[bytes | None], decoder: Decoder, rows: Sequence[int], max_bytes: int
) -> Decoded:
    """Decodes the values at `rows`; the result carries the rows of the whole poll."""
    found = decoder([values[row] for row in rows], max_bytes)
    rejected = [replace(each, row=rows[each.row]) for each in found.rejected]
    return Decoded(np.asarray(rows, dtype=np.int64)[found.rows], found.table, rejected)
