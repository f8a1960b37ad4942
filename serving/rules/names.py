"""The names that an expression may use, with their types.

Knows the fields of items, users and requests, and the attributes that are declared. Does not know
how a name's values are stored as columns (`serving.rules.columns`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from serving.pipeline.query import Query
from serving.rules.syntax import RuleError
from streams.contract.attributes import AttributeDeclarations
from streams.contract.declaration import contract
from streams.contract.events import CatalogueItem

Type = Literal["bool", "number", "string", "strings", "timestamp", "duration"]
Path = tuple[str, ...]


@dataclass(frozen=True)
class ItemField:
    """read: an item's value; None where the owner has not stated it. Timestamps and durations are
    milliseconds."""

    type: Type
    read: Callable[[CatalogueItem], Any]


def _price(item: CatalogueItem) -> float | None:
    stated = item.price_cents or item.currency is not None
    return item.price_cents / 100 if stated else None


_ITEM: Mapping[str, ItemField] = {
    "id": ItemField("string", lambda item: item.item_id),
    "kind": ItemField("string", lambda item: item.kind),
    "categories": ItemField("strings", lambda item: item.categories),
    "author": ItemField("string", lambda item: item.author_id),
    "brand": ItemField("string", lambda item: item.brand),
    "seller": ItemField("string", lambda item: item.seller_id),
    "group": ItemField("string", lambda item: item.group_id),
    "duration": ItemField("duration", lambda item: item.duration_ms or None),
    "price": ItemField("number", _price),  # in units of the currency
    "currency": ItemField("string", lambda item: item.currency),
    "availability": ItemField("string", lambda item: item.availability),
    "locale": ItemField("string", lambda item: item.locale),
    "provenance": ItemField("string", lambda item: item.provenance),
    "created": ItemField("timestamp", lambda item: item.created_ms or None),
}
_REQUEST: Mapping[Path, Type] = {
    ("user", "id"): "string",
    ("context", "device"): "string",
    ("context", "page"): "string",
    ("context", "locale"): "string",
    ("context", "item"): "string",
    ("now",): "timestamp",
}
_ATTRIBUTE_TYPES: Mapping[str, Type] = {
    "number": "number",
    "text": "string",
    "label": "string",
    "labels": "strings",
    "flag": "bool",
}


def item_field(path: Path) -> ItemField | None:
    """The field of an item by its path after `item`; None where there is none of that name."""
    if len(path) == 1:
        return _ITEM.get(path[0])
    if len(path) == 2 and path[0] == "attributes":
        return _attribute_fields(contract().items).get(path[1])
    return None


@lru_cache(maxsize=8)
def _fields_of(declared: tuple[tuple[str, str], ...]) -> dict[str, ItemField]:
    return {name: _attribute(name, _ATTRIBUTE_TYPES[kind]) for name, kind in declared}


def _attribute_fields(declarations: AttributeDeclarations) -> dict[str, ItemField]:
    return _fields_of(tuple(_usable(declarations).items()))


def _usable(declarations: AttributeDeclarations) -> dict[str, str]:
    """Declared attributes that an expression may use: all but vectors."""
    declared = declarations.declared.items()
    return {name: each.type for name, each in declared if each.type in _ATTRIBUTE_TYPES}


def _attribute(name: str, kind: Type) -> ItemField:
    forms: Mapping[str, Any] = {"number": float, "string": str, "strings": tuple, "bool": bool}
    form = forms[kind]

    def read(item: CatalogueItem) -> Any:
        value: Any = item.attributes.get(
            name
        )  # stored before its declaration, it may be of any form
        fits = isinstance(value, form) and not (form is float and isinstance(value, bool))
        if fits and kind == "strings":
            fits = all(isinstance(each, str) for each in value)
        return value if fits else None

    return ItemField(kind, read)


def type_of(path: Path) -> Type:
    """The type of a name.

    Raises:
        RuleError: there is no such name; the message states the nearest one.
    """
    if path[0] == "item" and (field := item_field(path[1:])) is not None:
        return field.type
    if path in _REQUEST:
        return _REQUEST[path]
    if path[:2] == ("user", "attributes") and len(path) == 3:
        kind = _usable(contract().users).get(path[2])
        if kind is not None:
            return _ATTRIBUTE_TYPES[kind]
    stated = ".".join(path)
    # An attribute stated as if it were a field of the item or user: it is meant, whatever is near.
    whole = f"{path[0]}.attributes.{path[-1]}"
    hint = f": write {whole}" if whole in known_names() else nearest(stated, known_names())
    raise RuleError(f"there is no {stated}{hint}")


def known_names() -> list[str]:
    """Every name that an expression may use, sorted."""
    declared = contract()
    return sorted(
        [
            *(f"item.{name}" for name in _ITEM),
            *(f"item.attributes.{name}" for name in _usable(declared.items)),
            *(".".join(path) for path in _REQUEST),
            *(f"user.attributes.{name}" for name in _usable(declared.users)),
        ]
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """`: the nearest is X`, or all that there are where none is near."""
    names = list(known)
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f": the nearest is {found[0]}" if found else f"; there are {', '.join(names)}"


class RequestValues:
    """The values of one query's names."""

    def __init__(self, query: Query) -> None:
        self._query = query

    def value(self, path: Path) -> Any:
        """None where it is not stated."""
        query = self._query
        if path[0] == "now":
            return float(query.now_ms)
        if path[0] == "context":
            return getattr(query.context, "item_id" if path[1] == "item" else path[1])
        return query.user_id if path[1] == "id" else query.user_attributes.get(path[2])
