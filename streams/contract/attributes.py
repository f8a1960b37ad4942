"""Attributes that an owner declares for items or users: their types, and the check of values.

Knows six types and the bounds of a value. Does not know where attributes are declared (the
settings) nor what carries them (`streams.contract.items`).

A value is checked twice. Its form is part of the contract: every reader checks that, also of
stored messages. Its declared type is checked where a message enters (`AttributeDeclarations.admit`),
so a later declaration never makes a stored message unreadable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from streams.contract.bounds import MAX_LABEL, MAX_NAME, MAX_TEXT

MAX_ATTRIBUTES = 256  # of one item or user
MAX_LABELS = 64  # of one attribute
MAX_VECTOR = 4_096  # numbers of one attribute
MAX_PROFILE_BYTES = 32_768  # of a user's attributes as JSON, which the user's row holds

AttributeType = Literal["number", "text", "label", "labels", "flag", "vector"]
Undeclared = Literal["keep", "mark", "reject"]
AttributeValue = bool | float | str | tuple[str, ...] | tuple[float, ...]
Attributes = Mapping[str, AttributeValue]


class AttributeDeclaration(BaseModel):
    """One declared attribute; a string stands for its type.

    number: a finite float. text: up to 8,192 characters. label: 1 to 128 characters.
    labels: up to 64 labels. flag: true or false. vector: `length` finite floats.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: AttributeType
    length: Annotated[int, Field(ge=1, le=MAX_VECTOR)] | None = None  # of a vector

    @model_validator(mode="before")
    @classmethod
    def _from_type(cls, data: Any) -> Any:
        return {"type": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _length_of_vectors(self) -> AttributeDeclaration:
        if (self.type == "vector") != (self.length is not None):
            raise ValueError(
                'a vector needs its length, as in { type = "vector", length = 64 }'
                if self.type == "vector"
                else f"length is for vectors, not for a {self.type}"
            )
        return self

    def problem(self, value: AttributeValue) -> str:
        """Why a value of sound form does not fit; "": it fits."""
        if self.type == "vector":
            return _vector_problem(value, self.length or 0)
        fits = {
            "number": isinstance(value, float),
            "text": isinstance(value, str),
            "label": isinstance(value, str) and 1 <= len(value) <= MAX_LABEL,
            "labels": isinstance(value, tuple) and _are_labels(value),
            "flag": isinstance(value, bool),
        }
        return "" if fits[self.type] else f"it is declared {self.type}, not {_form(value)}"


def _are_labels(values: tuple[Any, ...]) -> bool:
    return len(values) <= MAX_LABELS and all(
        isinstance(each, str) and 1 <= len(each) <= MAX_LABEL for each in values
    )


def _vector_problem(value: AttributeValue, length: int) -> str:
    if not isinstance(value, tuple) or any(isinstance(each, str) for each in value):
        return f"it is declared a vector of {length} numbers, not {_form(value)}"
    if len(value) != length:
        return f"it is declared a vector of {length} numbers and has {len(value)}"
    return ""


def _form(value: AttributeValue) -> str:
    if isinstance(value, bool):
        return "a flag"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    return f"a list of {len(value)} {'texts' if value and isinstance(value[0], str) else 'numbers'}"


@dataclass(frozen=True)
class AttributeDeclarations:
    """What one section of the settings declares. `undeclared`: what becomes of other attributes."""

    declared: Mapping[str, AttributeDeclaration] = field(default_factory=dict)
    undeclared: Undeclared = "keep"

    def admit(self, attributes: Attributes) -> dict[str, AttributeValue]:
        """The attributes of a message that enters.

        Raises:
            PydanticCustomError: a value does not fit its declaration, or an undeclared attribute is
                declared to be rejected.
        """
        for name, value in attributes.items():
            declaration = self.declared.get(name)
            if declaration is None:
                if self.undeclared == "reject":
                    raise _error("undeclared_attribute", f"{name!r} is not declared")
            elif problem := declaration.problem(value):
                raise _error("attribute_type", f"{name!r} does not fit: {problem}")
        return dict(attributes)

    def marked(self, attributes: Attributes) -> tuple[str, ...]:
        """The names to store beside the attributes as undeclared, sorted."""
        if self.undeclared != "mark":
            return ()
        return tuple(sorted(name for name in attributes if name not in self.declared))

    def conforming(self, attributes: Attributes) -> dict[str, AttributeValue | None]:
        """Every declared attribute's value; None where it is absent or does not fit."""
        return {
            name: value
            if (value := attributes.get(name)) is not None and not declaration.problem(value)
            else None
            for name, declaration in self.declared.items()
        }

    def fitting(self, attributes: Attributes) -> dict[str, AttributeValue]:
        """Without stored values that do not fit a later declaration."""
        return {
            name: value
            for name, value in attributes.items()
            if name not in self.declared or not self.declared[name].problem(value)
        }


def _error(kind: str, message: str) -> PydanticCustomError:
    # Braces in a name must not be read as a template.
    return PydanticCustomError(kind, "{why}", {"why": message})  # type: ignore[arg-type]


def sound_value(value: Any) -> AttributeValue:
    """A value of JSON as it is stored: numbers as floats, lists as tuples.

    Raises:
        PydanticCustomError: it is no flag, number, text or list of texts or numbers within bounds.
    """
    if isinstance(value, str):
        return _sound_text(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _sound_number(value)
    if isinstance(value, list | tuple):
        return _sound_list(value)
    raise _error(
        "attribute_type", "an attribute is a flag, a number, a text or a list of texts or numbers"
    )


def _sound_text(value: str) -> str:
    if len(value) > MAX_TEXT or not _is_storable(value):
        raise _error(
            "attribute_bounds", f"a text has up to {MAX_TEXT} characters, none of them NUL"
        )
    return value


def _is_storable(text: str) -> bool:
    """Without NUL and without half a surrogate pair, which has no UTF-8."""
    if text.isascii():
        return "\0" not in text
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _sound_number(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _error("attribute_bounds", "a number must be finite: no NaN and no infinity")
    return number


def _sound_list(values: list[Any] | tuple[Any, ...]) -> tuple[str, ...] | tuple[float, ...]:
    if len(values) > MAX_VECTOR:
        raise _error("attribute_bounds", f"a list has up to {MAX_VECTOR} values")
    if all(isinstance(each, str) for each in values):
        return tuple(_sound_text(each) for each in values)
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        raise _error("attribute_type", "a list holds only texts or only numbers")
    return tuple(_sound_number(each) for each in values)


def _sound_attributes(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values  # pydantic names the type that it expects
    stated = {name: value for name, value in values.items() if value is not None}
    if len(stated) > MAX_ATTRIBUTES:
        raise _error(
            "attribute_bounds", f"{len(stated)} attributes, of which {MAX_ATTRIBUTES} are accepted"
        )
    for name in stated:
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not _is_storable(name):
            raise _error("attribute_bounds", f"a name has 1 to {MAX_NAME} characters")
    return stated


_SCALARS = [{"type": "boolean"}, {"type": "number"}, {"type": "string", "maxLength": MAX_TEXT}]
_VALUE_SCHEMA = {
    "anyOf": [
        *_SCALARS,
        {"type": "array", "maxItems": MAX_VECTOR, "items": {"type": "string"}},
        {"type": "array", "maxItems": MAX_VECTOR, "items": {"type": "number"}},
    ]
}
AttributeValues = Annotated[
    dict[str, Annotated[Any, BeforeValidator(sound_value), WithJsonSchema(_VALUE_SCHEMA)]],
    BeforeValidator(_sound_attributes),
    Field(max_length=MAX_ATTRIBUTES),
]
"""Attributes by name, of sound form; a null is an absent attribute."""


def attributes_json(attributes: Attributes) -> str:
    """Attributes of sound form as one text, the same for the same attributes: names are sorted.

    Raises:
        PydanticCustomError: it is longer than `MAX_PROFILE_BYTES`.
    """
    text = orjson.dumps(dict(attributes), option=orjson.OPT_SORT_KEYS)
    if len(text) > MAX_PROFILE_BYTES:
        raise _error(
            "attribute_bounds",
            f"{len(text)} bytes of attributes as JSON, of which {MAX_PROFILE_BYTES} are accepted",
        )
    return text.decode()


def read_attributes_json(text: str) -> dict[str, AttributeValue]:
    """The attributes of `attributes_json`; none of a text that holds no JSON object."""
    try:
        stated = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(stated, dict):
        return {}
    return {n: tuple(v) if isinstance(v, list) else v for n, v in stated.items()}
