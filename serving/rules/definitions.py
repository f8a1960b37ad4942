"""Standing rules as the owner states them, and as they are compiled.

Knows the kinds of rules, their fields and the checks of a whole set. Does not know where a set is
kept (`serving.state.rule_book`) nor how a rule acts on a slate (`serving.stages.rules`).
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving.rules.names import nearest, type_of
from serving.rules.predicate import Predicate, compile_predicate
from serving.rules.syntax import RuleError
from streams.contract.bounds import Id

MAX_RULES = 100
MAX_STRENGTH = 10.0  # standard deviations of the candidates' scores
Kind = Literal["filter", "boost", "pin", "exclude_own", "exclude_seen", "group", "share"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_Expression = Annotated[str, Field(max_length=20_000)]  # longer ones are refused with a reason
_Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class RuleFields(BaseModel):
    """What every rule has.

    surfaces: on which it acts; empty: on all that know its kind. since, until: from when until
    when, both with a zone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,63}$")]
    surfaces: tuple[str, ...] = ()
    since: datetime | None = Field(None, alias="from")
    until: datetime | None = None
    enabled: bool = True

    @model_validator(mode="after")
    def _times(self) -> RuleFields:
        for at in (self.since, self.until):
            if at is not None and at.tzinfo is None:
                raise ValueError("a time needs its zone, as in 2026-11-30T08:00:00Z")
        if self.since is not None and self.until is not None and self.until <= self.since:
            raise ValueError("`until` is not after `from`")
        return self

    def applies_at(self, now_ms: int) -> bool:
        since, until = self.since, self.until
        return (
            self.enabled
            and (since is None or since.timestamp() * 1e3 <= now_ms)
            and (until is None or now_ms < until.timestamp() * 1e3)
        )

    @property
    def conditions(self) -> tuple[str, ...]:
        """Its expressions."""
        found = (getattr(self, name, None) for name in ("keep", "exclude", "when"))
        return tuple(text for text in found if text is not None)


class FilterRule(RuleFields):
    """Keeps only the items for which `keep` is true, or removes those for which `exclude` is."""

    kind: Literal["filter"]
    keep: _Expression | None = None
    exclude: _Expression | None = None

    @model_validator(mode="after")
    def _one(self) -> FilterRule:
        if (self.keep is None) == (self.exclude is None):
            raise ValueError("state either `keep` or `exclude`")
        return self


class BoostRule(RuleFields):
    """Promotes (strength above 0) or buries (below 0), in standard deviations of the scores."""

    kind: Literal["boost"]
    when: _Expression
    strength: Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False)]


class PinRule(RuleFields):
    """Puts an item, or the best-scored one for which `when` is true, into a slot (from 0)."""

    kind: Literal["pin"]
    slot: Annotated[int, Field(ge=0, lt=100)]
    item: Id | None = None
    when: _Expression | None = None

    @model_validator(mode="after")
    def _some(self) -> PinRule:
        if self.item is None and self.when is None:
            raise ValueError("state `item`, `when` or both")
        return self


class ExcludeOwnRule(RuleFields):
    """Removes items whose author or seller is the user."""

    kind: Literal["exclude_own"]


class ExcludeSeenRule(RuleFields):
    """Removes items that the user engaged with, or was shown `times` times or more lately."""

    kind: Literal["exclude_seen"]
    times: Annotated[int, Field(ge=1, le=100)] = 1


class GroupRule(RuleFields):
    """At most `at_most` items of one slate share a value of `by`, a text of items."""

    kind: Literal["group"]
    by: Annotated[str, Field(max_length=256)] = "item.group"
    at_most: Annotated[int, Field(ge=1, le=100)] = 1


class ShareRule(RuleFields):
    """Of the k slots, at least `minimum` (rounded up) and at most `maximum` (rounded down)."""

    kind: Literal["share"]
    when: _Expression
    minimum: _Share = 0.0
    maximum: _Share = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> ShareRule:
        if self.minimum > self.maximum:
            raise ValueError("`minimum` is above `maximum`")
        return self


Rule = Annotated[
    FilterRule | BoostRule | PinRule | ExcludeOwnRule | ExcludeSeenRule | GroupRule | ShareRule,
    Field(discriminator="kind"),
]


class RuleSet(BaseModel):
    """The whole set, in the order in which rules of one kind act."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()

    def stated(self) -> dict[str, Any]:
        """As JSON, without what has its default."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class RulesRefused(ValueError):
    """A set that is refused as a whole. problems: one for each fault: where, and why."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{where}: {why}" for where, why in problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class CompiledRule:
    """A rule and its conditions, in the order of `RuleFields.conditions`."""

    rule: Rule
    conditions: tuple[Predicate, ...]

    @property
    def condition(self) -> Predicate:
        return self.conditions[0]


@dataclass(frozen=True)
class CompiledRules:
    """A checked set."""

    stated: RuleSet
    rules: tuple[CompiledRule, ...] = ()
    surface_kinds: Mapping[str, Sequence[str]] | None = None

    @cached_property
    def _by_surface(self) -> dict[str, tuple[CompiledRule, ...]]:
        kinds = self.surface_kinds or {}
        return {
            surface: tuple(
                each
                for each in self.rules
                if each.rule.enabled
                and each.rule.kind in accepted
                and (not each.rule.surfaces or surface in each.rule.surfaces)
            )
            for surface, accepted in kinds.items()
        }

    def acting(self, surface: str, now_ms: int) -> tuple[CompiledRule, ...]:
        """The rules that act on a surface at a time."""
        rules = self._by_surface.get(surface, ())
        return tuple(each for each in rules if each.rule.applies_at(now_ms)) if rules else ()


def read_rules(stated: Any, surface_kinds: Mapping[str, Sequence[str]]) -> CompiledRules:
    """A set of rules as JSON or TOML gave it, checked and compiled.

    surface_kinds: surface -> the kinds of rules that act on it.

    Raises:
        RulesRefused: with every fault that was found.
    """
    try:
        found = RuleSet.model_validate(stated)
    except ValidationError as error:
        raise RulesRefused([_shape_problem(each, stated) for each in error.errors()]) from error
    problems, compiled = list[tuple[str, str]](), list[CompiledRule]()
    times = Counter(rule.name for rule in found.rules)
    problems += [(name, "two rules have this name") for name, n in times.items() if n > 1]
    for rule in found.rules:
        problems += [(rule.name, why) for why in _surface_problems(rule, surface_kinds)]
        try:
            if isinstance(rule, GroupRule):
                _check_group(rule.by)
            compiled.append(CompiledRule(rule, tuple(map(compile_predicate, rule.conditions))))
        except RuleError as error:
            problems.append((rule.name, str(error)))
    if problems:
        raise RulesRefused(problems)
    return CompiledRules(found, tuple(compiled), surface_kinds)


def read_rules_toml(text: str, surface_kinds: Mapping[str, Sequence[str]]) -> CompiledRules:
    """Rules of a TOML file: tables `[[rules]]`. Raises `RulesRefused`."""
    try:
        stated = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesRefused([("the file", f"is not TOML: {error}")]) from error
    return read_rules(_with_zones(stated), surface_kinds)


def _with_zones(stated: dict[str, Any]) -> dict[str, Any]:
    """TOML's times as texts, so that both forms of a set are checked alike."""
    rules = stated.get("rules")
    if isinstance(rules, list):
        for rule in rules:
            for name in ("from", "until"):
                if isinstance(rule, dict) and isinstance(rule.get(name), datetime):
                    rule[name] = rule[name].isoformat()
    return stated


def _check_group(by: str) -> None:
    path = tuple(by.split(".", 2)) if by.startswith("item.attributes.") else tuple(by.split("."))
    kind = type_of(path)
    if path[0] != "item" or kind != "string":
        raise RuleError(f"`by` takes a text of items, and {by} is none")


def _surface_problems(rule: Rule, surface_kinds: Mapping[str, Sequence[str]]) -> list[str]:
    found = []
    for surface in rule.surfaces:
        if surface not in surface_kinds:
            found.append(f"there is no surface {surface}{nearest(surface, surface_kinds)}")
        elif rule.kind not in surface_kinds[surface]:
            found.append(f"a {rule.kind} has no effect on {surface}")
    return found


def _shape_problem(error: Any, stated: Any) -> tuple[str, str]:
    """Where and why: the rule's name if it has one, and the field."""
    path = [part for part in error["loc"] if part not in KINDS]
    where, why = ".".join(map(str, path)) or "the set", str(error["msg"])
    if error["type"] == "extra_forbidden":
        why = f"there is no field {path[-1]}"
    elif error["type"] == "union_tag_invalid":
        given = str(error.get("input", {}).get("kind", ""))
        why = f"there is no kind {given!r}{nearest(given, KINDS)}"
    if len(path) > 1 and path[0] == "rules" and isinstance(path[1], int):
        rule = stated["rules"][path[1]]
        name = rule.get("name") if isinstance(rule, dict) else None
        where = f"{name or f'rules[{path[1]}]'}"
        where += "".join(f".{part}" for part in path[2:])
    return where, why.removeprefix("Value error, ")
