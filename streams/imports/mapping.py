"""A mapping: which column of a file is which field of an event, an item or a user.

Knows the TOML form and its errors, and the mappings that are shipped. Does not read files
(`streams.imports.source`) nor translate values (`streams.imports.sql`).
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)

from streams.contract.declaration import contract
from streams.contract.events import models_of
from streams.contract.items import CatalogueItem

Target = Literal["events", "items", "users"]
UNITS = ("s", "ms", "us", "ns", "iso")
TIMES = frozenset({"event_time_ms", "created_ms"})
REQUIRED: dict[Target, tuple[str, ...]] = {
    "events": ("user_id", "kind", "event_time_ms"),
    "items": ("item_id", "title"),
    "users": ("user_id", "attributes"),
}
_PRESETS = files("streams.imports") / "presets"


class BadMapping(ValueError):
    """The mapping is wrong, or does not fit the file; the message says what to write."""


class Source(BaseModel):
    """Where one field's value comes from; a string stands for its column.

    column: of several the first that has a value. In JSON, and below `each`, a path with dots.
    value: the same for every row. map: the column's value -> the field's; others have none.
    unit and zone: of times. scale: factor of numbers. separator: of lists.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: Annotated[
        tuple[str, ...], BeforeValidator(lambda c: (c,) if isinstance(c, str) else c)
    ] = ()
    value: str | int | float | bool | None = None
    map: dict[str, str | int | float] = {}
    default: str | int | float | None = None
    prefix: str = ""
    scale: float = 1.0
    separator: str = "|"
    unit: str = "iso"
    zone: str = "UTC"

    @model_validator(mode="before")
    @classmethod
    def _from_column(cls, data: Any) -> Any:
        return {"column": data} if isinstance(data, str | list) else data

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.column) == (self.value is not None):
            raise ValueError(
                'name a column, or give a value: item_id = "sku", kind = { value = "play" }'
            )
        return self

    @field_validator("unit")
    @classmethod
    def _known_unit(cls, unit: str) -> str:
        if unit not in UNITS and "%" not in unit:
            raise ValueError(f"the unit is one of {', '.join(UNITS)}, or a form such as %Y-%m-%d")
        return unit

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ValueError, OSError, KeyError):
            raise ValueError(f"{zone!r} is no time zone such as UTC or Europe/Berlin") from None
        return zone


class Mapping(BaseModel):
    """One file's columns as fields.

    format: by the file's name where it is not given. each: in JSON, a path to a list; every
    element becomes a row, and its own paths begin with `each.`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    target: Target = "events"
    format: Literal["csv", "parquet", "json"] | None = None
    delimiter: str | None = None
    header: bool = True
    columns: tuple[str, ...] = ()
    each: str = ""
    fields: dict[str, Source]
    attributes: dict[str, Source] = {}

    @model_validator(mode="after")
    def _fits_the_target(self) -> Self:
        known = _known_fields(self.target)
        for name in self.fields:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f": {', '.join(sorted(known))}"
                raise ValueError(f"{self.target} have no field {name!r}{hint}")
        for name in REQUIRED[self.target]:
            given = self.attributes if name == "attributes" else self.fields
            if not (given if name == "attributes" else name in given):
                raise ValueError(f"{self.target} need {name}")
        if self.attributes and self.target == "events":
            raise ValueError("events have no attributes: import items or users with them")
        if not self.header and not self.columns:
            raise ValueError("a file without a header needs its columns' names")
        return self


def _known_fields(target: Target) -> set[str]:
    if target == "items":
        return {*CatalogueItem.model_fields, "event_time_ms"} - {"attributes", "undeclared"}
    if target == "users":
        return {"user_id", "event_time_ms"}
    models = models_of(contract().signals).values()
    named = {name for model in models for name in model.model_fields}
    return (named | {"item_id"}) - {"video_id", "attributes"}


def shipped() -> dict[str, Mapping]:
    """Name -> mapping, of those that come with tidemill."""
    names = sorted(each.name for each in _PRESETS.iterdir() if each.name.endswith(".toml"))
    return {
        name.removesuffix(".toml"): _read((_PRESETS / name).read_text(), name) for name in names
    }


def shipped_text(name: str) -> str:
    """The TOML of a shipped mapping, to copy and change.

    Raises:
        BadMapping: there is none of this name.
    """
    path = _PRESETS / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise BadMapping(_unknown(name))
    return path.read_text()


def load(name: str) -> Mapping:
    """A shipped mapping, or the one in the TOML file of this name.

    Raises:
        BadMapping: there is none, or it is wrong.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        try:
            return _read(path.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise BadMapping(f"{name} cannot be read: {error}") from None
    return _read(shipped_text(name), name)


def _read(text: str, name: str) -> Mapping:
    try:
        return Mapping.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise BadMapping(f"{name}: {error}") from None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        lines = [
            f"{'.'.join(map(str, p['loc']))}: {p['msg'].removeprefix('Value error, ')}".lstrip(": ")
            for p in problems
        ]
        raise BadMapping(f"{name}: " + "\n".join(lines)) from None


def _unknown(name: str) -> str:
    names = [
        each.name.removesuffix(".toml")
        for each in _PRESETS.iterdir()
        if each.name.endswith(".toml")
    ]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(sorted(names))}"
    return f"there is no mapping {name!r}; {hint} A file of your own ends in .toml"
