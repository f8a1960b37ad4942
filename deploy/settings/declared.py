"""What an owner declares in the settings: attributes, signals, and a file of features.

Knows which names an owner may declare. Does not know what a declaration means
(`streams.contract.attributes`, `streams.contract.signals`, `features.definitions`) nor who reads it
(`deploy.wiring.declare`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, field_validator

from deploy.settings.values import Section
from streams.contract.attributes import (
    MAX_ATTRIBUTES,
    AttributeDeclaration,
    AttributeDeclarations,
    Undeclared,
)
from streams.contract.bounds import declared_name_problem
from streams.contract.events import EVENT_MODELS
from streams.contract.impression import Impression
from streams.contract.items import OWN_NAMES
from streams.contract.signals import (
    MAX_SIGNAL_NAME,
    PAYLOAD_COLUMNS,
    PROFILE,
    SignalDeclaration,
)

_EVENT_NAMES = frozenset(
    {*EVENT_MODELS, PROFILE.name, *PAYLOAD_COLUMNS.values(), *Impression.model_fields}
    | {name for model in EVENT_MODELS.values() for name in model.model_fields}
)


class AttributesSettings(Section):
    """Attributes, such as `colour = "label"` or `look = {type = "vector", length = 64}`."""

    taken: ClassVar[frozenset[str]] = frozenset()

    attributes: dict[str, AttributeDeclaration] = {}
    # Of attributes that are not declared: keep stores them, mark also lists them as `undeclared`
    # beside the others, reject makes the message a dead letter.
    undeclared: Undeclared = "keep"

    @field_validator("attributes")
    @classmethod
    def _have_free_names(
        cls, attributes: dict[str, AttributeDeclaration]
    ) -> dict[str, AttributeDeclaration]:
        if len(attributes) > MAX_ATTRIBUTES:
            raise ValueError(
                f"{len(attributes):,} attributes are declared; a message states at most {MAX_ATTRIBUTES}"
            )
        for name in attributes:
            if problem := declared_name_problem(name, cls.taken):
                raise ValueError(f"{name!r} cannot be declared: {problem}")
        return attributes

    def declarations(self) -> AttributeDeclarations:
        return AttributeDeclarations(self.attributes, self.undeclared)


class ItemsSettings(AttributesSettings):
    """Attributes of items."""

    taken = OWN_NAMES


class UsersSettings(AttributesSettings):
    """Attributes of users. With at least one, the signal `profile` is in force."""

    taken = frozenset({"user_id", "attributes", "undeclared"})


def _free_names(signals: dict[str, SignalDeclaration]) -> dict[str, SignalDeclaration]:
    for name in signals:
        problem = declared_name_problem(name, _EVENT_NAMES)
        if not problem and len(name) > MAX_SIGNAL_NAME:
            problem = f"a signal's name has up to {MAX_SIGNAL_NAME} characters"
        if problem:
            raise ValueError(f"{name!r} cannot be declared: {problem}")
    return signals


DeclaredSignals = Annotated[dict[str, SignalDeclaration], AfterValidator(_free_names)]
"""Sections `[signals.NAME]`."""


class FeaturesSettings(Section):
    """A Python file whose `FEATURES` lists, by entity, features beside the shipped ones."""

    file: Path | None = None

    @field_validator("file")
    @classmethod
    def _exists(cls, file: Path | None) -> Path | None:
        if file is None:
            return None
        if not file.is_file():
            raise ValueError(f"there is no file {file} (looked in {Path.cwd()})")
        return file.resolve()
