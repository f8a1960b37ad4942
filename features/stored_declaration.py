"""The declaration in force as JSON: beside the log and in Feast's registry, for readers elsewhere.

Knows the contract's open parts (attributes, signals, surfaces) and an owner's features. Does not
know settings: `deploy.wiring` puts those in force and writes this file. A reader that starts no
stack, such as Spark or a plain Feast client, adopts what it finds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from features.declarations import WINDOWS, Feature, Window
from features.definitions import DEFINITIONS, EntityDefinition, definitions_of
from features.own_features import FEATURE_TYPES, OwnFeatures
from features.store import EntityName
from streams.contract.declaration import Contract, contract, declare

FILE = "declaration.json"
_CONTRACT = TypeAdapter(Contract)
_WINDOWS = {window.name: window for window in WINDOWS}
_TYPES = {each.__name__: each for each in FEATURE_TYPES}


class UnreadableDeclaration(ValueError):
    """The JSON is no declaration of this version."""


@dataclass(frozen=True)
class Declaration:
    """What an owner declares beside the shipped contract and features."""

    contract: Contract = field(default_factory=Contract)
    features: OwnFeatures = field(default_factory=dict)

    @property
    def declares_nothing(self) -> bool:
        """Whether rows, items and events are those of the shipped contract."""
        items, signals = self.contract.items, self.contract.signals
        return not (items.declared or signals.declared or signals.removed or self.features)

    def to_json(self) -> bytes:
        features = {
            entity: [_plain(each) for each in own] for entity, own in self.features.items() if own
        }
        body = {"contract": _CONTRACT.dump_python(self.contract, mode="json")}
        return orjson.dumps(body | {"features": features}, option=orjson.OPT_INDENT_2)

    @classmethod
    def from_json(cls, raw: bytes | str) -> Declaration:
        """Raises `UnreadableDeclaration`, also where its features do not fit this code's."""
        try:
            body = orjson.loads(raw)
            features = {
                entity: tuple(map(_feature, own)) for entity, own in body["features"].items()
            }
            declaration = cls(_CONTRACT.validate_python(body["contract"]), features)
            declaration.definitions()
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise UnreadableDeclaration(f"no declaration of this version: {error!r}") from error
        return declaration

    def definitions(self) -> Mapping[EntityName, EntityDefinition]:
        """The features that follow from it. Puts nothing in force."""
        return definitions_of(self.contract.signals, self.features)


def declaration_in_force() -> Declaration:
    """This process's declaration."""
    return Declaration(contract(), DEFINITIONS.own)


def write_declaration(directory: Path, declaration: Declaration) -> None:
    """Writes the declaration beside the log, whole or not at all.

    Writes nothing where the file says the same, or where nothing is declared and no file is there.
    """
    path, body = directory / FILE, declaration.to_json()
    stored = path.read_bytes() if path.exists() else None
    if body == stored or (stored is None and declaration.declares_nothing):
        return
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{FILE}.{os.getpid()}")
    partial.write_bytes(body)
    partial.replace(path)


def read_declaration(directory: Path) -> Declaration:
    """The declaration beside the log; without a file, the shipped contract and features.

    Raises:
        UnreadableDeclaration: the file is damaged or of another version.
    """
    path = directory / FILE
    if not path.exists():
        return Declaration()
    try:
        return Declaration.from_json(path.read_bytes())
    except UnreadableDeclaration as error:
        raise UnreadableDeclaration(f"{path}: {error}; the next start writes it again") from error


def adopt(declaration: Declaration) -> None:
    """Puts a stored declaration in force, unless this process has declared by itself.

    What was adopted before is replaced, so that a reader follows a stack whose declaration changes.
    """
    global _adopted
    if contract() not in (Contract(), _adopted.contract) or DEFINITIONS.own not in (
        {},
        _adopted.features,
    ):
        return
    if declaration == declaration_in_force():
        return
    declare(declaration.contract)
    DEFINITIONS.add(declaration.features)
    _adopted = declaration


_adopted = Declaration()


def _plain(feature: Feature) -> dict[str, Any]:
    """A feature as JSON holds it: its type, its fields, and windows by name."""
    stated = {each.name: getattr(feature, each.name) for each in fields(feature)}
    return {"feature": type(feature).__name__} | {
        name: _window_names(value) for name, value in stated.items()
    }


def _window_names(value: Any) -> Any:
    if isinstance(value, Window):
        return value.name
    return [_window_names(each) for each in value] if isinstance(value, tuple) else value


def _feature(stated: Mapping[str, Any]) -> Feature:
    given = dict(stated)
    kind = _TYPES[given.pop("feature")]
    for name, value in given.items():
        if name == "window":
            given[name] = _WINDOWS[value]
        elif name == "windows":
            given[name] = tuple(_WINDOWS[each] for each in value)
        elif isinstance(value, list):
            given[name] = tuple(value)
    return kind(**given)
