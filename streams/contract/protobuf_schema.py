"""The event contract as Protobuf: field numbers, message classes, the .proto texts.

Knows which number carries which field of `streams.contract.events`. Does not know how messages
are decoded (`streams.codec.protobuf`) nor how a producer marks them (`streams.codec.content_type`).

Descriptors are built here rather than by protoc, so that kinds and literals are stated once,
in the contract. `docs/schemas/event_v1.proto` and `event_v2.proto` are their texts for producers in
other languages (`python -m deploy.export_schemas`); a test compares version 1 with protoc's output.

Version 1 is closed: its kinds are the shipped ones, and it never changes. Version 2 states kinds and
surfaces by name, items by `item_id`, and has the payloads of declared signals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from streams.contract.events import LITERAL_VALUES


class Field(NamedTuple):
    """`type` is `string`, `int64`, `double` or the name of an enum."""

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
    "Kind": LITERAL_VALUES["kind"],
    "Surface": ("feed", "queries", "reactivation", "search", "external"),  # all that version 1 has
    "Origin": LITERAL_VALUES["origin"],
    "Provenance": LITERAL_VALUES["provenance"],
}

_NOTES = {
    "kind": "a shipped kind, or a signal that the stack's settings declare",
    "item_id": "every kind but search",
    "value": "of signals with the payload value",
    "text": "of signals with the payload text",
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


def _version_2(field: Field) -> Field:
    if field.name in ("kind", "surface"):
        return field._replace(type="string")
    return field._replace(name="item_id") if field.name == "video_id" else field


FIELDS_V2 = (*map(_version_2, FIELDS), Field(15, "value", "double"), Field(16, "text", "string"))
_NOTES_OF_V2 = ("kind", "item_id", "value", "text")
_SCALARS = {"string": "TYPE_STRING", "int64": "TYPE_INT64", "double": "TYPE_DOUBLE"}


@dataclass(frozen=True)
class Version:
    """One version of the message `Event`."""

    number: int
    fields: tuple[Field, ...]
    enums: tuple[str, ...]  # names in ENUMS

    @property
    def package(self) -> str:
        return f"tidemill.v{self.number}"

    @property
    def file(self) -> str:
        return f"event_v{self.number}.proto"

    @cached_property
    def descriptor(self) -> Any:
        """A FileDescriptorProto."""
        file = descriptor_pb2.FileDescriptorProto(
            name=self.file, package=self.package, syntax="proto3"
        )
        event = file.message_type.add(name="Event")
        for field in self.fields:
            self._add_field(event, field)
        for name in self.enums:
            enum = file.enum_type.add(name=name)
            for number, value in enumerate(_enum_value_names(name, ENUMS[name])):
                enum.value.add(name=value, number=number)
        return file

    @cached_property
    def message(self) -> Any:
        """The message class, also for producers in Python."""
        pool = descriptor_pool.DescriptorPool()
        pool.Add(self.descriptor)
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{self.package}.Event"))

    def _add_field(self, event: Any, field: Field) -> None:
        """Adds a field; texts and numbers have explicit presence: absent differs from empty."""
        kinds = descriptor_pb2.FieldDescriptorProto
        added = event.field.add(name=field.name, number=field.number, label=kinds.LABEL_OPTIONAL)
        if field.type in ENUMS:
            added.type, added.type_name = kinds.TYPE_ENUM, f".{self.package}.{field.type}"
            return
        added.type = getattr(kinds, _SCALARS[field.type])
        added.proto3_optional, added.oneof_index = True, len(event.oneof_decl)
        event.oneof_decl.add(name=f"_{field.name}")

    def _note(self, name: str) -> str:
        """Version 2 states kinds as the JSON contract does."""
        note = _NOTES[name]
        return note if self.number == 1 else re.sub(r"KIND_\w+", lambda k: k[0][5:].lower(), note)

    def proto_text(self) -> bytes:
        """The schema as a .proto file."""
        lines = [_HEAD.format(version=self.number, package=self.package), "message Event {"]
        for number, name, kind in self.fields:
            noted = name in _NOTES and (self.number > 1 or name not in _NOTES_OF_V2)
            note = f"  // {self._note(name)}" if noted else ""
            label = "" if kind in ENUMS else "optional "
            lines.append(f"  {label}{kind} {name} = {number};{note}")
        lines.append("}")
        for enum in self.enums:
            stated = [f"  {v} = {i};" for i, v in enumerate(_enum_value_names(enum, ENUMS[enum]))]
            lines += ["", f"enum {enum} {{", *stated, "}"]
        return "\n".join([*lines, ""]).encode()


_HEAD = """\
// One event, version {version}, as the topic `behaviour` takes it with the Kafka header
//   content-type: application/x-protobuf; v={version}
// Bounds and required fields are those of event.schema.json. Written by
// `python -m deploy.export_schemas`; do not edit.
syntax = "proto3";

package {package};
"""


def _enum_value_names(enum: str, values: tuple[str, ...]) -> list[str]:
    return [f"{enum}_{value}".upper() for value in ("unspecified", *values)]


V1 = Version(1, FIELDS, tuple(ENUMS))
V2 = Version(2, FIELDS_V2, ("Origin", "Provenance"))
VERSIONS = {version.number: version for version in (V1, V2)}
VERSION = V1.number  # of a message whose header names none
FILE_DESCRIPTOR: Any = V1.descriptor
EventMessage: Any = V1.message


def encode_protobuf_event(event: dict[str, Any], version: Version = V1) -> bytes:
    """Encodes one event that is given by the names and values of the JSON contract.

    None means absent. `video_id` is `item_id` in version 2.

    Raises:
        ValueError: a value outside the contract, such as a declared signal in version 1.
    """
    message = version.message()
    for _, name, kind in version.fields:
        value = event.get(name)
        if value is None and name == "item_id":
            value = event.get("video_id")
        if value is not None:
            setattr(message, name, ENUMS[kind].index(value) + 1 if kind in ENUMS else value)
    payload: bytes = message.SerializeToString()
    return payload
