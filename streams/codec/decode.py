"""Decode messages into columns: a poll of JSON in one pass, doubtful messages one by one.

Knows the event contract (`streams.contract.events`), and the cause and detail of every rejection.
Does not know time limits (`streams.ingest.admission`) nor where a message came from.

The fast path is a compiled scan (`streams.codec.json`) that is stricter than the contract.
Pydantic validates each message that the scan leaves out, so the scan may err on one side only
and the pydantic models stay the single definition of a valid event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError

from streams.codec.framing import TornFrameError, is_framed, read_frame
from streams.contract.bounds import TIME_FIELDS, time_fix
from streams.contract.declaration import contract
from streams.contract.events import Event, event_adapter
from streams.contract.schema import decoded_schema

MAX_EVENT_BYTES = 65_536
_CHUNK_BYTES = 64 * 2**20

Rows = npt.NDArray[np.int64]


class Rejection(NamedTuple):
    """Why a message is no valid event."""

    cause: str
    detail: str


@dataclass(frozen=True, slots=True)
class RejectedMessage:
    """Why the message at `row` of its poll is a dead letter."""

    row: int
    cause: str
    detail: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """`table` (DECODED_SCHEMA) holds the valid messages, `rows` (int64, ascending) their indexes."""

    rows: Rows
    table: pa.Table
    rejected: list[RejectedMessage]


T = TypeVar("T")
Validate = Callable[[bytes | None], Event | Rejection]


def decode_json(
    values: Sequence[bytes | None],
    max_bytes: int = MAX_EVENT_BYTES,
    validate: Callable[[bytes | None, int], Event | Rejection] | None = None,
) -> Decoded:
    """Turns every message into a row of `table` or a `RejectedMessage`. Raises nothing.

    `validate`: reads what the scan left out, given the value and `max_bytes`; else
    `validate_json_message`.
    """
    from streams.codec.json import scan_events

    readable, sizes = _readable(values, max_bytes)
    parts, schema = list[Decoded](), decoded_schema()
    doubtful = np.ones(len(values), dtype=np.bool_)
    for start, stop in _chunks(sizes):
        rows, columns = scan_events(readable[start:stop], sizes[start:stop])
        rows += start
        doubtful[rows] = False
        typed = [columns[field.name].cast(field.type) for field in schema]
        parts.append(Decoded(rows, pa.Table.from_arrays(typed, schema=schema), []))
    read = validate or validate_json_message
    doubted = np.flatnonzero(doubtful).tolist()
    parts.append(validate_rows(values, doubted, lambda value: read(value, max_bytes)))
    return merge_decoded(parts)


def prepare() -> None:
    """Loads the compiled scan and the contract's tables, which the first call would wait for."""
    decode_json([b"{}"])


def _readable(values: Sequence[bytes | None], max_bytes: int) -> tuple[Sequence[bytes], Rows]:
    """The values and their sizes (int64 [N]); missing and oversized values become empty."""
    try:
        sizes = np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    except TypeError:  # a message without a value: rare
        return _readable([b"" if value is None else value for value in values], max_bytes)
    whole = cast(Sequence[bytes], values)
    if int(sizes.max(initial=0)) <= max_bytes:
        return whole, sizes
    return _readable([v if len(v) <= max_bytes else b"" for v in whole], max_bytes)


def _chunks(sizes: Rows) -> Iterator[tuple[int, int]]:
    """(start, stop) of rows that are scanned together: the whole poll unless it is huge."""
    ends = np.cumsum(sizes)
    start = before = 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK_BYTES)))
        yield start, stop
        start, before = stop, int(ends[stop - 1])


def validate_rows(
    values: Sequence[bytes | None], rows: Sequence[int], validate: Validate
) -> Decoded:
    """Validates the messages at `rows` (ascending) one by one."""
    rejected: list[RejectedMessage] = []
    valid: list[int] = []
    events: list[dict[str, Any]] = []
    number = contract().signals.number
    for row in rows:
        verdict = validate(values[row])
        if isinstance(verdict, Rejection):
            rejected.append(RejectedMessage(row, *verdict))
        else:
            valid.append(row)
            events.append(verdict.model_dump() | {"kind": number[verdict.kind]})
    table = pa.Table.from_pylist(events, schema=decoded_schema())
    return Decoded(np.array(valid, dtype=np.int64), table, rejected)


def merge_decoded(parts: Sequence[Decoded]) -> Decoded:
    """The parts as one, its rows in the order of the messages."""
    rejected = [rejection for part in parts for rejection in part.rejected]
    filled = [part for part in parts if len(part.rows)]
    if not filled:
        return Decoded(np.empty(0, dtype=np.int64), decoded_schema().empty_table(), rejected)
    rows = np.concatenate([part.rows for part in filled])
    table = pa.concat_tables([part.table for part in filled])
    if not bool((rows[1:] > rows[:-1]).all()):
        order = np.argsort(rows)
        rows, table = rows[order], table.take(pa.array(order))
    return Decoded(rows, table, rejected)


def validate_json_event(value: bytes | None, max_bytes: int = MAX_EVENT_BYTES) -> Event | Rejection:
    """Parses and validates one JSON message."""
    if value is None or len(value) > max_bytes:
        return reject_unreadable(value, max_bytes)
    try:
        return event_adapter().validate_json(value)
    except ValidationError as error:
        rejection = reject_invalid(error)
        if rejection.cause == "not_json" and not _is_utf8(value):
            return Rejection("undecodable", "the bytes are not UTF-8")
        return rejection


def validate_json_message(
    value: bytes | None, max_bytes: int = MAX_EVENT_BYTES
) -> Event | Rejection:
    """As `validate_json_event`, for a message that may be framed (`streams.codec.framing`)."""
    if not value or len(value) > max_bytes or not is_framed(value):
        return validate_json_event(value, max_bytes)
    return validate_framed(value, lambda payload: validate_json_event(payload, max_bytes))


def validate_framed(value: bytes, validate: Callable[[bytes], T | Rejection]) -> T | Rejection:
    """What `validate` says of the payload of a framed value; a rejection names the frame."""
    try:
        schema_id, payload = read_frame(value)
        verdict = validate(payload)
    except TornFrameError as error:
        return Rejection("torn_frame", str(error))
    if isinstance(verdict, Rejection):
        frame = f" (behind the Confluent frame of schema {schema_id})"
        return Rejection(verdict.cause, verdict.detail[: 300 - len(frame)] + frame)
    return verdict


def reject_unreadable(value: bytes | None, max_bytes: int) -> Rejection:
    """The rejection of a message that has no value or more than `max_bytes`."""
    if value is None:
        return Rejection("null_value", "the message has no value")
    return Rejection("too_large", f"{len(value)} bytes, an event may have {max_bytes}")


_CAUSES = {
    "json_invalid": "not_json",
    "model_attributes_type": "not_an_object",
    "model_type": "not_an_object",
    "dict_type": "not_an_object",
    "union_tag_invalid": "unknown_kind",
    "union_tag_not_found": "missing_field",
    "missing": "missing_field",
    "int_type": "wrong_type",
    "float_type": "wrong_type",
    "int_from_float": "wrong_type",
    "string_type": "wrong_type",
    "literal_error": "unknown_value",
    "unknown_value": "unknown_value",
    "attribute_type": "wrong_type",
    "undeclared_attribute": "undeclared_attribute",
}


def reject_invalid(error: ValidationError) -> Rejection:
    """The rejection that states the first of pydantic's findings."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"][-1:])
    cause = _CAUSES.get(first["type"], "out_of_bounds")
    detail = f"{field}: {first['msg']}" if field else first["msg"]
    if field in TIME_FIELDS and cause in ("out_of_bounds", "wrong_type"):
        detail += f" ({time_fix(first['input'])})"
    return Rejection(cause, detail[:300])


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
