"""The event contract as Protobuf, version 1: field numbers, the message class, the .proto text.

Knows which number carries which field of `streams.contract.events`. Does not know how messages
are decoded (`streams.codec.protobuf`) nor how a producer marks them (`streams.codec.content_type`).

The descriptor is built here rather than by protoc, so that kinds and literals are stated once,
in the contract. `docs/schemas/event_v1.proto` is its text for producers in other languages
(`python -m deploy.export_schemas`); a test compares it with protoc's output for that file.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from streams.contract.events import LITERAL_VALUES

VERSION = 1
_PACKAGE, _FILE = f"tidemill.v{VERSION}", f"event_v{VERSION}.proto"


class Field(NamedTuple):
    """`type` is `string`, `int64` or the name of an enum in ENUMS."""

    number: int
    name: str
    type: str


# The numbers are the wire format: a new field takes the next number, and a removed field's
# number is never reused. The tag of a number below 16 takes one byte.
FIELDS: tuple[Field, ...] = (
    Field(1, "event_id", "string"),
    Field(2, "user_id", "string"),
    Field(3, "kind", "Kind"),
    Field(4, "event_time_ms", "int64"),
    Field(5, "surface", "Surface"),
    Field(6, "origin", "Origin"),
    Field(7, "request_id", "string"),
    Field(8, "impression", "string"),
    Field(9, "video_id", "string"),
    Field(10, "author_id", "string"),
    Field(11, "provenance", "Provenance"),
    Field(12, "query", "string"),
    Field(13, "dwell_ms", "int64"),
    Field(14, "amount_cents", "int64"),
)

# Enum -> its values from number 1 on; 0 is "not stated". The orders are the wire format:
# append, never reorder.
ENUMS: dict[str, tuple[str, ...]] = {
    name.capitalize(): values for name, values in LITERAL_VALUES.items()
}

_NOTES = {
    "event_id": "1 to 128 characters; the same (user_id, event_id) counts once",
    "user_id": "1 to 128 characters",
    "event_time_ms": "milliseconds since 1970, never seconds or microseconds",
    "surface": "not stated: external",
    "origin": "not stated: live",
    "impression": "the signed token of the impression that this event answers",
    "video_id": "every kind but KIND_SEARCH",
    "provenance": "not stated: human",
    "query": "KIND_QUERY_SHOWN, KIND_QUERY_CLICK, KIND_SEARCH",
    "dwell_ms": "KIND_SKIP, KIND_PLAY, KIND_LONG_VIEW; milliseconds",
    "amount_cents": "KIND_CART, KIND_ORDER; hundredths of the currency",
}
_HEAD = f"""\
// One event, version {VERSION}, as the topic `behaviour` takes it with the Kafka header
//   content-type: application/x-protobuf; v={VERSION}
// Bounds and required fields are those of event.schema.json. Written by
// `python -m deploy.export_schemas`; do not edit.
syntax = "proto3";

package {_PACKAGE};
"""


def _file_descriptor() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    event = file.message_type.add(name="Event")
    for field in FIELDS:
        _add_field(event, field)
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(_enum_value_names(name, values)):
            enum.value.add(name=value, number=number)
    return file


def _add_field(event: Any, field: Field) -> None:
    """Adds a field; texts and numbers have explicit presence: absent differs from empty."""
    kinds = descriptor_pb2.FieldDescriptorProto
    added = event.field.add(name=field.name, number=field.number, label=kinds.LABEL_OPTIONAL)
    if field.type in ENUMS:
        added.type, added.type_name = kinds.TYPE_ENUM, f".{_PACKAGE}.{field.type}"
        return
    added.type = kinds.TYPE_STRING if field.type == "string" else kinds.TYPE_INT64
    added.proto3_optional, added.oneof_index = True, len(event.oneof_decl)
    event.oneof_decl.add(name=f"_{field.name}")


def _enum_value_names(enum: str, values: tuple[str, ...]) -> list[str]:
    return [f"{enum}_{value}".upper() for value in ("unspecified", *values)]


FILE_DESCRIPTOR: Any = _file_descriptor()
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(FILE_DESCRIPTOR)
EventMessage: Any = message_factory.GetMessageClass(
    _POOL.FindMessageTypeByName(f"{_PACKAGE}.Event")
)
"""The message class of `tidemill.v1.Event`, also for producers in Python."""


def proto_text() -> bytes:
    """The schema as a .proto file."""
    lines = [_HEAD, "message Event {"]
    for number, name, kind in FIELDS:
        note = f"  // {_NOTES[name]}" if name in _NOTES else ""
        label = "" if kind in ENUMS else "optional "
        lines.append(f"  {label}{kind} {name} = {number};{note}")
    lines.append("}")
    for enum, values in ENUMS.items():
        stated = [f"  {v} = {i};" for i, v in enumerate(_enum_value_names(enum, values))]
        lines += ["", f"enum {enum} {{", *stated, "}"]
    return "\n".join([*lines, ""]).encode()


def encode_protobuf_event(event: dict[str, Any]) -> bytes:
    """Encodes one event that is given by the names and values of the JSON contract.

    None means absent.

    Raises:
        ValueError: a kind, surface, origin or provenance outside the contract.
    """
    message = EventMessage()
    for _, name, kind in FIELDS:
        value = event.get(name)
        if value is not None:
            setattr(message, name, ENUMS[kind].index(value) + 1 if kind in ENUMS else value)
    payload: bytes = message.SerializeToString()
    return payload
