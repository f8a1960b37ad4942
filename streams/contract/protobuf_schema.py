"""The event contract as Protobuf, version 1: field numbers, the message class, the .proto text.

Knows which number carries which field of `streams.contract.events`. Does not know how many messages
are read at once (`streams.codec.protobuf`) nor how a producer says that it speaks Protobuf
(`streams.codec.content_type`).

The descriptor is built here rather than by protoc, so that kinds and literals are stated once,
in the contract. `docs/schemas/event_v1.proto` is its text for producers in other languages
(`python -m deploy.export_schemas`); a test holds it to what protoc makes of that file.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from streams.contract import events
from streams.contract.events import KINDS

VERSION = 1
_PACKAGE, _FILE = f"tidemill.v{VERSION}", f"event_v{VERSION}.proto"


class Field(NamedTuple):
    """`type` is `string`, `int64` or the name of an enum in ENUMS."""

    number: int
    name: str
    type: str


# The numbers are the wire format: a new field takes the next number, and the number of a
# field that was removed is never given again. Below 16 a field's tag is one byte.
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
    "Kind": KINDS,
    "Surface": get_args(events.Surface),
    "Origin": get_args(events.Origin),
    "Provenance": get_args(events.Provenance),
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


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    event = file.message_type.add(name="Event")
    for field in FIELDS:
        _add(event, field)
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(_values(name, values)):
            enum.value.add(name=value, number=number)
    return file


def _add(event: Any, field: Field) -> None:
    """Texts and numbers know whether they were stated: absent is not the same as empty."""
    kinds = descriptor_pb2.FieldDescriptorProto
    added = event.field.add(name=field.name, number=field.number, label=kinds.LABEL_OPTIONAL)
    if field.type in ENUMS:
        added.type, added.type_name = kinds.TYPE_ENUM, f".{_PACKAGE}.{field.type}"
        return
    added.type = kinds.TYPE_STRING if field.type == "string" else kinds.TYPE_INT64
    added.proto3_optional, added.oneof_index = True, len(event.oneof_decl)
    event.oneof_decl.add(name=f"_{field.name}")


def _values(enum: str, values: tuple[str, ...]) -> list[str]:
    return [f"{enum}_{value}".upper() for value in ("unspecified", *values)]


FILE_DESCRIPTOR: Any = _file()
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(FILE_DESCRIPTOR)
EventMessage: Any = message_factory.GetMessageClass(
    _POOL.FindMessageTypeByName(f"{_PACKAGE}.Event")
)
"""The message class of `tidemill.v1.Event`: what a producer in Python may use as well."""


def proto_text() -> bytes:
    """The schema as a .proto file."""
    lines = [_HEAD, "message Event {"]
    for number, name, kind in FIELDS:
        note = f"  // {_NOTES[name]}" if name in _NOTES else ""
        label = "" if kind in ENUMS else "optional "
        lines.append(f"  {label}{kind} {name} = {number};{note}")
    lines.append("}")
    for enum, values in ENUMS.items():
        stated = [f"  {v} = {i};" for i, v in enumerate(_values(enum, values))]
        lines += ["", f"enum {enum} {{", *stated, "}"]
    return "\n".join([*lines, ""]).encode()


def message_of(event: dict[str, Any]) -> bytes:
    """The bytes of one event given by the names and values of the JSON contract.

    A None is absent.

    Raises:
        ValueError: a kind, surface, origin or provenance that the contract does not have.
    """
    message = EventMessage()
    for _, name, kind in FIELDS:
        value = event.get(name)
        if value is not None:
            setattr(message, name, ENUMS[kind].index(value) + 1 if kind in ENUMS else value)
    payload: bytes = message.SerializeToString()
    return payload
