"""A selector under rules: boosted scores, and slots limited by pins, groups and shares.

Knows the rules that act and the selector that draws. Does not know how it draws
(`serving.stages.selectors`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from serving.pipeline.pool import Pool
from serving.pipeline.query import RULES, Boosted, Candidate, Query, Removal
from serving.pipeline.stage import Selector
from serving.rules.columns import Frame
from serving.rules.values import TextColumn
from serving.stages.acting_rules import ActingRules, RuleReader, boosted
from serving.stages.placement import Group, Limits, Pin, Share, SlateLimits
from serving.stages.selectors import InOrder

RULES_KEPT = "rule_selection"  # in the memo of a query on whose slate rules acted


class LimitedSelector(Selector, Protocol):
    """A selector that can choose within limits."""

    def select_within(
        self, query: Query, pool: Pool, limits: SlateLimits
    ) -> tuple[Candidate, ...]: ...


@dataclass(frozen=True)
class RuleSelector:
    """The inner selector under the rules that act on the query."""

    inner: LimitedSelector
    reader: RuleReader

    @property
    def name(self) -> str:
        return self.inner.name

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]:
        acting, frame = self.reader.acting(query), self.reader.frame(query, pool)
        in_order = isinstance(self.inner, InOrder)
        if not in_order:
            pool = _boosted_pool(acting, frame, pool)
        slots = min(query.k, len(pool))
        limits = Limits(
            pins=self._pins(query, acting, frame, pool),
            groups=[_group(rule.name, rule.by, rule.at_most, frame) for rule in acting.groups],
            shares=[
                Share.of(rule.name, condition.holds(frame), rule.minimum, rule.maximum, query.k)
                for rule, condition in acting.shares
            ],
            only_pinned=pool.from_source(RULES) if in_order else None,
        )
        state = SlateLimits(limits, slots)
        items = self.inner.select_within(query, pool, state)
        query.memo[RULES_KEPT] = query.user, (pool, state)
        query.rule_notes.unmet |= state.unmet()
        if not in_order:
            self._note_boosts(query, acting, pool, items)
        return items

    def held_back(self, query: Query, pool: Pool, items: tuple[Candidate, ...]) -> list[Removal]:
        """What only a cap, a group or a maximum kept out: it outscores an item, or the slate is
        short."""
        state: SlateLimits
        pool, state = query.memo[RULES_KEPT][1]
        explain = getattr(self.inner, "held_back", None)
        found = list(explain(query, pool, items)) if explain is not None else []
        closed = np.broadcast_to(state.closed, (len(pool),))
        if not closed.any():
            return found
        taken = {item.item_id for item in items} | {removal.item_id for removal in found}
        if len(items) == query.k and pool.scored is not None:
            closed = closed & (pool.scored.score > min(item.score for item in items))
        for row in np.flatnonzero(closed).tolist():
            why = state.why_closed(row)
            if why is not None and pool.item_ids[row] not in taken:
                reason = f"rule {why[0]}: {why[1]}"
                found.append(Removal(pool.item_ids[row], RULES, reason, pool.queries[row]))
        return found

    def _pins(self, query: Query, acting: ActingRules, frame: Frame, pool: Pool) -> list[Pin]:
        """The pins that hold. Of two that name one slot, the first does."""
        found: dict[int, Pin] = {}
        free, unmet = np.ones(len(pool), bool), query.rule_notes.unmet
        for rule, condition in acting.pins:
            if rule.slot in found:
                unmet[rule.name] = f"slot {rule.slot} is taken by {found[rule.slot].rule}"
                continue
            if rule.slot >= query.k:
                unmet[rule.name] = f"the request is for {query.k} slots"
                continue
            open_ = self.reader.pin_candidates(rule, condition, frame) & free
            if not open_.any():
                unmet[rule.name] = "no candidate that it names is left"
                continue
            row = _best(pool, open_)
            free[row] = False
            found[rule.slot] = Pin(rule.name, rule.slot, row)
        return list(found.values())

    def _note_boosts(
        self, query: Query, acting: ActingRules, pool: Pool, items: tuple[Candidate, ...]
    ) -> None:
        """Which rules changed the scores of the slate's items."""
        if not acting.boosts or pool.scored is None or not items:
            return
        ids = [item.item_id for item in items]
        frame = self.reader.frame_of(query, self.reader.catalogue.table.numbers.rows_of(ids))
        for boost in acting.boosts:
            for place in np.flatnonzero(boost.condition.holds(frame)).tolist():
                query.rule_notes.boosted.append(Boosted(ids[place], boost.rule, boost.strength))


def _best(pool: Pool, among: np.ndarray) -> int:
    """The best-scored row; the first where nothing is scored."""
    if pool.scored is None:
        return int(among.argmax())
    score = np.nan_to_num(pool.scored.score.astype(np.float64), nan=-np.inf)
    rows = np.flatnonzero(among)
    return int(rows[score[rows].argmax()])


def _boosted_pool(acting: ActingRules, frame: Frame, pool: Pool) -> Pool:
    if not acting.boosts or pool.scored is None:
        return pool
    score = boosted(pool.scored.score, acting, frame).astype(np.float32)
    return replace(pool, scored=replace(pool.scored, score=score))


def _group(name: str, by: str, at_most: int, frame: Frame) -> Group:
    path = tuple(by.split(".", 2)) if by.startswith("item.attributes.") else tuple(by.split("."))
    column = frame.column(path[1:])
    assert isinstance(column, TextColumn)
    codes, place = np.unique(column.codes, return_inverse=True)
    of = place.reshape(-1) - (len(codes) > 0 and codes[0] < 0)  # items without a value are of none
    return Group(name, of, at_most)
