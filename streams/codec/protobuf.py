"""Decode Protobuf messages into columns, one message after the other.

Knows the message classes of `streams.contract.protobuf_schema`. Does not know which messages are
Protobuf (`streams.codec.content_type`) nor the contract's bounds (`streams.contract.events`).
A message costs about 11 µs; the compiled scan of the same event in JSON costs 2.6 µs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import ValidationError

from streams.codec.decode import (
    MAX_EVENT_BYTES,
    Decoded,
    Rejection,
    merge_decoded,
    reject_invalid,
    reject_unreadable,
    validate_framed,
    validate_rows,
)
from streams.codec.framing import TornFrameError, is_framed, without_indexes
from streams.contract.events import Event, event_adapter
from streams.contract.protobuf_schema import ENUMS, V1, V2, Version

_NO_JSON = "what follows the frame is no JSON, so it is read as Protobuf; Avro is not read"


def decode_protobuf(
    values: Sequence[bytes | None], max_bytes: int = MAX_EVENT_BYTES, version: Version = V1
) -> Decoded:
    """Turns every message into a row of `table` or a `RejectedMessage`. Raises nothing."""
    validate = partial(validate_protobuf_event, max_bytes=max_bytes, version=version)
    return merge_decoded([validate_rows(values, range(len(values)), validate)])


def validate_protobuf_event(
    value: bytes | None, max_bytes: int = MAX_EVENT_BYTES, version: Version = V1
) -> Event | Rejection:
    """Parses and validates one Protobuf message, which may be framed (`streams.codec.framing`)."""
    if value is None or len(value) > max_bytes:
        return reject_unreadable(value, max_bytes)
    if is_framed(value):
        return validate_framed(value, lambda payload: _validate(without_indexes(payload), version))
    return _validate(value, version)


def validate_framed_protobuf(value: bytes) -> Event | Rejection:
    """As `validate_protobuf_event`, for a framed message of a version that no header states.

    Version 1 states the kind as a number and version 2 as a text, with different tags.
    """

    def validate(payload: bytes) -> Event | Rejection:
        try:
            message = without_indexes(payload)
            version = V1 if V1.message.FromString(message).kind else V2
        except TornFrameError as error:
            raise TornFrameError(f"{error} ({_NO_JSON})") from error
        except DecodeError as error:
            return Rejection("not_protobuf", f"{error} ({_NO_JSON})"[:300])
        return _validate(message, version)

    return validate_framed(value, validate)


def _validate(value: bytes, version: Version) -> Event | Rejection:
    try:
        stated = _stated_fields(value, version)
        if isinstance(number := stated.get("surface"), int):
            return Rejection("unknown_value", f"surface: {number} is no number of this version")
        return event_adapter().validate_python(stated)
    except DecodeError as error:
        return Rejection("not_protobuf", str(error)[:300])
    except ValidationError as error:
        return reject_invalid(error)


def _stated_fields(value: bytes, version: Version) -> dict[str, Any]:
    """The fields that the message states, by the names and values of the JSON contract.

    An enum number that this version does not know stays a number, which pydantic rejects.
    """
    stated = {field.name: found for field, found in version.message.FromString(value).ListFields()}
    for _, name, kind in version.fields:
        if kind in ENUMS and name in stated and 0 < stated[name] <= len(ENUMS[kind]):
            stated[name] = ENUMS[kind][stated[name] - 1]
    return stated
