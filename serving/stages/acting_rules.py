"""The rules that act on one query: standing ones and those that the request states.

Knows rules and requests. Does not know the stages in which they act (`serving.stages.rules`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from serving.pipeline.pool import Pool
from serving.pipeline.query import Query
from serving.rules.columns import Frame, ItemColumns
from serving.rules.definitions import (
    BoostRule,
    CompiledRule,
    ExcludeOwnRule,
    ExcludeSeenRule,
    FilterRule,
    GroupRule,
    PinRule,
    ShareRule,
)
from serving.rules.names import RequestValues
from serving.rules.predicate import Predicate, compile_predicate
from serving.rules.requests import FilteredRequest, RuledRequest
from serving.rules.syntax import MAX_REQUEST_LENGTH
from serving.state.catalogue import LiveCatalogue
from serving.state.rule_book import RuleBook

OF_REQUEST = "request"  # stands for a rule's name where the request itself states it
_OWN = "item.author == user.id || item.seller == user.id"


@dataclass(frozen=True)
class FilterTest:
    """keep: only items that meet the condition stay; otherwise these are removed."""

    rule: str
    condition: Predicate
    keep: bool

    def removed(self, frame: Frame) -> np.ndarray:
        """bool [C]. An item of which the condition is unknown does not meet it."""
        meets = self.condition.holds(frame)
        return ~meets if self.keep else meets

    @property
    def reason(self) -> str:
        if self.rule == OF_REQUEST:
            return "the request's filter"
        return f"rule {self.rule}"


@dataclass(frozen=True)
class BoostTest:
    rule: str
    condition: Predicate
    strength: float


@dataclass
class ActingRules:
    """By kind, in the order of the set; what the request states comes last."""

    filters: list[FilterTest] = field(default_factory=list)
    boosts: list[BoostTest] = field(default_factory=list)
    seen: list[ExcludeSeenRule] = field(default_factory=list)
    pins: list[tuple[PinRule, Predicate | None]] = field(default_factory=list)
    groups: list[GroupRule] = field(default_factory=list)
    shares: list[tuple[ShareRule, Predicate]] = field(default_factory=list)

    def add(self, compiled: CompiledRule) -> None:
        rule = compiled.rule
        if isinstance(rule, FilterRule):
            self.filters.append(FilterTest(rule.name, compiled.condition, rule.keep is not None))
        elif isinstance(rule, ExcludeOwnRule):
            self.filters.append(FilterTest(rule.name, compile_predicate(_OWN), keep=False))
        elif isinstance(rule, BoostRule):
            self.boosts.append(BoostTest(rule.name, compiled.condition, rule.strength))
        elif isinstance(rule, ExcludeSeenRule):
            self.seen.append(rule)
        elif isinstance(rule, PinRule):
            self.pins.append((rule, compiled.condition if compiled.conditions else None))
        elif isinstance(rule, GroupRule):
            self.groups.append(rule)
        else:
            self.shares.append((rule, compiled.condition))

    def add_request(self, query: Query) -> None:
        request = query.request
        if isinstance(request, FilteredRequest) and request.filter is not None:
            condition = compile_predicate(request.filter, MAX_REQUEST_LENGTH)
            self.filters.append(FilterTest(OF_REQUEST, condition, keep=True))
        if isinstance(request, RuledRequest):
            for boost in request.boosts:
                condition = compile_predicate(boost.when, MAX_REQUEST_LENGTH)
                self.boosts.append(BoostTest(OF_REQUEST, condition, boost.strength))


@dataclass(frozen=True)
class RuleReader:
    """What acts on a query, and its candidates as an expression reads them."""

    book: RuleBook
    columns: ItemColumns
    catalogue: LiveCatalogue

    def act_on(self, query: Query) -> bool:
        """Whether any rule acts on the query; otherwise its pipeline runs without rules."""
        request = query.request
        if isinstance(request, FilteredRequest) and request.filter is not None:
            return True
        if isinstance(request, RuledRequest) and request.boosts:
            return True
        return bool(self.book.current().acting(query.surface, query.now_ms))

    def acting(self, query: Query) -> ActingRules:
        return query.once("acting_rules", lambda: self._acting(query))

    def frame(self, query: Query, pool: Pool) -> Frame:
        return self.frame_of(query, pool.rows_in(self.catalogue.table))

    def frame_of(self, query: Query, rows: np.ndarray) -> Frame:
        return self.columns.frame(rows, RequestValues(query))

    def pin_candidates(self, pin: PinRule, condition: Predicate | None, frame: Frame) -> np.ndarray:
        """bool [C]: the candidates that a pin may put into its slot."""
        found = np.ones(len(frame.rows), bool)
        if pin.item is not None:
            row = self.catalogue.table.numbers.row_of(pin.item)
            found = (frame.rows == row) & (row >= 0)
        return found if condition is None else found & condition.holds(frame)

    def _acting(self, query: Query) -> ActingRules:
        found = ActingRules()
        for compiled in self.book.current().acting(query.surface, query.now_ms):
            found.add(compiled)
        found.add_request(query)
        return found


def boosted(scores: np.ndarray, acting: ActingRules, frame: Frame) -> np.ndarray:
    """The scores, each raised by the strengths of the boosts that it meets times the scores'
    standard deviation. float64 [C]; what is not finite stays so."""
    if not acting.boosts:
        return scores
    finite = scores[np.isfinite(scores)].astype(np.float64)
    unit = float(finite.std()) if len(finite) else 0.0
    raised = np.zeros(len(scores))
    for boost in acting.boosts:
        raised += boost.strength * boost.condition.holds(frame)
    return np.asarray(scores + raised * (unit or 1.0))
