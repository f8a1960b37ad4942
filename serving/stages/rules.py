"""Rules at work: the stages that a pipeline gets where rules act on a request.

Knows the rules that act and a pipeline's stages by kind. Does not know how an expression is
evaluated (`serving.rules.predicate`) nor how a slot is drawn (`serving.stages.selectors`).

- `RuleSource` adds candidates that a filter, a pin or a minimum asks for.
- `RuleFilter` removes what filters, `exclude_own` and `exclude_seen` exclude.
- `RulePrerank` keeps what a pin or a minimum needs, and lets boosts act before candidates are cut.
- `serving.stages.rule_selector` boosts scores before the draw and limits what it may choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from serving.pipeline.frames import list_column
from serving.pipeline.items import best_places
from serving.pipeline.pool import CandidateRows, Pool
from serving.pipeline.query import RULES, Candidate, Query
from serving.pipeline.runner import Pipeline
from serving.pipeline.stage import Prerank, Removed, Source
from serving.rules.columns import Frame
from serving.stages.acting_rules import ActingRules, RuleReader, boosted
from serving.stages.filters import AlreadyEngaged, Duplicate
from serving.stages.rule_selector import LimitedSelector, RuleSelector
from serving.stages.selectors import InOrder
from serving.stages.sources import engaged_rows
from serving.state.activity import Activity
from serving.state.popularity import PopularityCache

_MATCHING = 200  # candidates that a filter adds: as many as the feed ranks
_FOR_A_PIN = 5  # candidates that a pin by condition adds


def with_rules(
    pipeline: Pipeline, reader: RuleReader, popularity: PopularityCache, activity: Activity
) -> Pipeline:
    """The pipeline for requests on which rules act."""
    in_order = isinstance(pipeline.selector, InOrder)
    source = RuleSource(reader, popularity, only_pins=in_order)
    selector: Any = pipeline.selector
    if hasattr(selector, "select_within"):
        selector = RuleSelector(cast(LimitedSelector, selector), reader)
    prerank = pipeline.prerank
    offers_once = any(isinstance(each, Duplicate) for each in pipeline.filters)
    duplicate = [] if offers_once else [Duplicate()]  # the rules' source repeats others' items
    return replace(
        pipeline,
        sources=[*pipeline.sources, source],
        fallback_sources=[_WithRules(each, source) for each in pipeline.fallback_sources],
        filters=[*duplicate, *pipeline.filters, RuleFilter(reader, AlreadyEngaged(activity))],
        prerank=None if prerank is None else RulePrerank(prerank, reader),
        selector=selector,
    )


@dataclass(frozen=True)
class RuleSource:
    """The most popular items that rules ask for: they pass all filters and the user has not
    engaged with them.

    only_pins: those of pins alone, where the order of the other sources is the slate's.
    """

    reader: RuleReader
    popularity: PopularityCache
    only_pins: bool = False
    name: str = RULES
    in_memory: bool = True

    def fetch(self, query: Query) -> Sequence[Candidate]:
        acting = self.reader.acting(query)
        asked_for = acting.pins or (not self.only_pins and self._asked_for(acting))
        if query.candidates is not None or not asked_for:
            return ()
        index = self.reader.catalogue.index()
        scores, _ = self.popularity.current.by_row(index.numbers)
        everything = self.reader.frame_of(query, index.rows)
        skip = engaged_rows(query, self.reader.catalogue)
        asked = [(index.rows[mask], count) for mask, count in self._asked(query, everything)]
        wanted = self._passing(query, asked, scores, skip)
        rows = np.unique(np.concatenate(wanted))
        rows = rows[best_places(scores[rows], len(rows))]
        return CandidateRows(self.reader.catalogue.table, rows, self.name, scores[rows])

    def _asked_for(self, acting: ActingRules) -> bool:
        return any(f.keep for f in acting.filters) or any(r.minimum for r, _ in acting.shares)

    def _asked(self, query: Query, frame: Frame) -> list[tuple[np.ndarray, int]]:
        """Which items are asked for (bool [N]), and how many of these."""
        acting = self.reader.acting(query)
        pins = [self.reader.pin_candidates(pin, when, frame) for pin, when in acting.pins]
        found = [(mask, _FOR_A_PIN) for mask in pins]
        if self.only_pins:
            return found
        for share, condition in acting.shares:
            if share.minimum:
                found.append((condition.holds(frame), 2 * query.k))
        kept = next((each for each in acting.filters if each.keep), None)
        if kept is not None:
            found.append((kept.condition.holds(frame), _MATCHING))
        return found

    def _passing(
        self,
        query: Query,
        asked: list[tuple[np.ndarray, int]],
        scores: np.ndarray,
        skip: np.ndarray,
    ) -> list[np.ndarray]:
        """int64, for each of `asked`: the `count` most popular of its rows that pass all filters.

        The most popular ones are tested first, all at once; the others only where these are too
        few.
        """
        numbers = self.reader.catalogue.table.numbers
        short = [_top(rows, scores, 2 * count + len(skip)) for rows, count in asked]
        passes = self._tested(query, np.unique(np.concatenate(short)), skip)
        found = []
        for (rows, count), some in zip(asked, short, strict=True):
            left = some[numbers.among(some, passes)]
            if len(left) < count and len(some) < len(rows):
                left = self._tested(query, rows, skip)
            found.append(_top(left, scores, count))
        return found

    def _tested(self, query: Query, rows: np.ndarray, skip: np.ndarray) -> np.ndarray:
        """Those of the rows that pass all filters and are not to be skipped."""
        if len(skip):
            rows = rows[~self.reader.catalogue.table.numbers.among(rows, skip)]
        frame = self.reader.frame_of(query, rows)
        passes = np.ones(len(rows), bool)
        for each in self.reader.acting(query).filters:
            passes &= ~each.removed(frame)
        return np.asarray(rows[passes])


def _top(rows: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` most popular rows."""
    return rows if len(rows) <= count else np.asarray(rows[best_places(scores[rows], count)])


@dataclass(frozen=True)
class _WithRules:
    """A fallback source, and after its candidates those that rules ask for."""

    inner: Source
    rules: RuleSource

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def in_memory(self) -> bool:
        return getattr(self.inner, "in_memory", False)

    def fetch(self, query: Query) -> Sequence[Candidate]:
        found, added = self.inner.fetch(query), self.rules.fetch(query)
        return [*found, *added] if len(found) and len(added) else found


@dataclass(frozen=True)
class RuleFilter:
    """Removes what rules and the request's filter exclude, with the rule's name as the reason."""

    reader: RuleReader
    engaged: AlreadyEngaged
    name: str = RULES
    soft: bool = False

    def removed(self, query: Query, pool: Pool) -> Removed:
        acting, frame = self.reader.acting(query), self.reader.frame(query, pool)
        gone, by = np.zeros(len(pool), bool), np.zeros(len(pool), np.int64)
        reasons = list[str]()
        for each in acting.filters:
            _exclude(gone, by, each.removed(frame), len(reasons))
            reasons.append(each.reason)
        for rule in acting.seen:
            _exclude(gone, by, self._seen(query, pool, rule.times), len(reasons))
            reasons.append(f"rule {rule.name}: the user has seen it")
        return Removed(gone, lambda row: reasons[int(by[row])])

    def _seen(self, query: Query, pool: Pool, times: int) -> np.ndarray:
        shown = list_column(query.user, "shown_video_id")
        often = {item_id for item_id in set(shown) if shown.count(item_id) >= times}
        numbers = self.reader.catalogue.table.numbers
        rows = pool.rows_in(self.reader.catalogue.table)
        shown_often = numbers.among(rows, numbers.rows_of(often))
        return np.asarray(shown_often | self.engaged.removed(query, pool).mask)


@dataclass(frozen=True)
class RulePrerank:
    """The inner pre-rank's scores, boosted; what a pin or a minimum needs is never cut."""

    inner: Prerank
    reader: RuleReader

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def keep(self) -> int:
        return self.inner.keep

    def prerank_scores(self, query: Query, pool: Pool) -> np.ndarray:
        acting, frame = self.reader.acting(query), self.reader.frame(query, pool)
        inner = np.array(self.inner.prerank_scores(query, pool), np.float64)
        scores = boosted(inner, acting, frame)
        order = np.nan_to_num(scores, nan=-np.inf)
        for pin, condition in acting.pins:
            open_ = self.reader.pin_candidates(pin, condition, frame)
            scores[_best_of(order, open_, _FOR_A_PIN)] = np.inf
        for share, condition in acting.shares:
            if share.minimum:
                scores[_best_of(order, condition.holds(frame), 2 * query.k)] = np.inf
        return scores


def _best_of(scores: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """int64: the `count` best-scored places of `among` (bool)."""
    places = np.flatnonzero(among)
    return np.asarray(places[best_places(scores[places], count)])


def _exclude(gone: np.ndarray, by: np.ndarray, more: np.ndarray, reason: int) -> None:
    by[more & ~gone] = reason
    gone |= more
