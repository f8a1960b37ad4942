"""Runs the stages of a surface: in order, side by side, within deadlines, failing open.

Knows the laws that a stage (`serving.pipeline.stage`) must keep. Does not know any one stage
(`serving.stages`) nor which surface uses which (`serving.pipeline.surfaces`).

    query hydrators ∥ → sources ∥ → filters → pre-rank → candidate hydrators ∥ → scorers → selector

Filters and the pre-rank come before the hydrators, so that features are read and ranked
only of what may still stand in the slate, however many candidates there were.

Laws, held here rather than trusted (`tests/serving/test_stage_laws.py`):
- a query hydrator writes only the fields that it declares;
- a candidate hydrator may not drop, add or reorder candidates: an answer of another
  length is thrown away and said so;
- a lost source means fewer candidates, never a lost answer;
- a filter gives a reason for each removal; a soft filter never leaves fewer than k;
- a pre-rank keeps at most its limit, never fewer than k, and each cut has its place as
  reason; one that fails keeps the first that the sources gave, and the reply says so;
- a scorer that fails or overruns is replaced by its fallback, and the reply says so.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from opentelemetry import trace

from serving.pipeline.query import Candidate, Fallback, Pool, Query, Removal, Scored, Slate
from serving.pipeline.stage import (
    CandidateHydrator,
    Explains,
    Filter,
    Hydration,
    Prerank,
    QueryHydrator,
    Scorer,
    Selector,
    Source,
)

T = TypeVar("T")
_TRACER = trace.get_tracer("tidemill.serving")


@dataclass(frozen=True)
class Deadlines:
    """Longest wait per stage group, in ms. Their sum bounds an answer."""

    query_hydrators: float = 200.0
    sources: float = 400.0
    hydrators: float = 250.0
    scorer: float = 400.0


class StageFailed(RuntimeError):
    """A stage answered something that breaks its law."""


@dataclass
class _Run:
    """What one request gathers on its way."""

    fallbacks: list[Fallback] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    stage_ms: dict[str, float] = field(default_factory=dict)

    def failed(self, stage: str, error: BaseException) -> None:
        self.fallbacks.append(Fallback(stage, _reason(error)))


@dataclass(frozen=True)
class Pipeline:
    """One surface's stages, as data. Building it runs nothing."""

    name: str
    query_hydrators: Sequence[QueryHydrator]
    sources: Sequence[Source]
    hydrators: Sequence[CandidateHydrator]
    filters: Sequence[Filter]
    scorer: Scorer
    selector: Selector
    fallback_sources: Sequence[Source] = ()  # asked in order, only while there are no candidates
    fallback_scorer: Scorer | None = None
    prerank: Prerank | None = None  # without one every candidate is scored
    deadlines: Deadlines = Deadlines()


class Runner:
    """Runs pipelines on one pool of threads. Thread safe."""

    def __init__(self, threads: int = 32) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="stage")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def run(self, pipeline: Pipeline, query: Query) -> Slate:
        """The slate for `query`. Never raises for a stage's failure."""
        run = _Run()
        with _TRACER.start_as_current_span(f"surface {pipeline.name}") as span:
            span.set_attribute("tidemill.user_id", query.user_id)
            span.set_attribute("tidemill.release", query.release.release_id)
            query = self._hydrate_query(pipeline, query, run)
            candidates = self._fetch(pipeline, query, run)
            pool = self._filter(pipeline, query, Pool(candidates), run)
            if not len(pool) and candidates and pipeline.fallback_sources:
                pool = self._refill(pipeline, query, run)
            pool = self._prerank(pipeline, query, pool, run)
            query, pool = self._hydrate(pipeline, query, pool, run)
            pool = self._score(pipeline, query, pool, run)
            items = self._select(pipeline, query, pool, run)
            span.set_attribute("tidemill.fallbacks", len(run.fallbacks))
        return Slate(
            query=query,
            items=items,
            weights=_by_task(pool, "weights"),
            rates=_by_task(pool, "rates"),
            fallbacks=tuple(run.fallbacks),
            removals=tuple(run.removals),
            stage_ms=run.stage_ms,
            candidates_seen=len(candidates),
            seen=pool.seen(items),
            log_density=None if pool.scored is None else pool.scored.log_density,
        )

    def _hydrate_query(self, pipeline: Pipeline, query: Query, run: _Run) -> Query:
        calls = [(h.name, _bind(h.hydrate, query)) for h in pipeline.query_hydrators]
        done = self._together(calls, pipeline.deadlines.query_hydrators, run)
        for hydrator in pipeline.query_hydrators:
            learned = done.get(hydrator.name)
            if learned is not None:
                query = replace(query, **{f: getattr(learned, f) for f in hydrator.fields})
        return query

    def _fetch(self, pipeline: Pipeline, query: Query, run: _Run) -> tuple[Candidate, ...]:
        limit = pipeline.deadlines.sources
        found = self._ask(pipeline.sources, query, limit, run)
        if not found:
            found = self._last_resort(pipeline, query, run)
        return found

    def _last_resort(self, pipeline: Pipeline, query: Query, run: _Run) -> tuple[Candidate, ...]:
        for source in pipeline.fallback_sources:
            found = self._ask([source], query, pipeline.deadlines.sources, run)
            if found:
                run.fallbacks.append(Fallback("sources", f"answered by {source.name}"))
                return found
        return ()

    def _refill(self, pipeline: Pipeline, query: Query, run: _Run) -> Pool:
        """Everything was filtered away: the fallback sources get their turn, once."""
        candidates = self._last_resort(pipeline, query, run)
        return self._filter(pipeline, query, Pool(candidates), run)

    def _ask(
        self, sources: Sequence[Source], query: Query, limit: float, run: _Run
    ) -> tuple[Candidate, ...]:
        done = self._together([(s.name, _bind(s.fetch, query)) for s in sources], limit, run)
        return tuple(c for s in sources for c in done.get(s.name) or ())

    def _prerank(self, pipeline: Pipeline, query: Query, pool: Pool, run: _Run) -> Pool:
        stage = pipeline.prerank
        if stage is None or len(pool) <= max(stage.keep, query.k):
            return pool
        worth = np.arange(len(pool), 0, -1)  # the sources' order, where the stage fails
        try:
            with _timed(stage.name, run):
                judged = np.asarray(stage.worth(query, pool))
                if judged.shape != worth.shape:
                    raise StageFailed("judged another number of candidates")
                worth = judged
        except Exception as error:
            run.failed(stage.name, error)
        return _cut(stage, pool, worth, max(stage.keep, query.k), run)

    def _hydrate(
        self, pipeline: Pipeline, query: Query, pool: Pool, run: _Run
    ) -> tuple[Query, Pool]:
        candidates = pool.candidates
        if not candidates:
            return query, pool
        calls = [(h.name, _bind(h.hydrate, query, candidates)) for h in pipeline.hydrators]
        done = self._together(calls, pipeline.deadlines.hydrators, run)
        for name, hydration in done.items():
            if not hydration.fits(len(pool)):
                run.failed(name, StageFailed("returned another number of candidates"))
                continue
            pool = _with(pool, hydration)
        return replace(query, stale=query.stale or len(done) < len(calls)), pool

    def _filter(self, pipeline: Pipeline, query: Query, pool: Pool, run: _Run) -> Pool:
        for stage in pipeline.filters:
            try:
                with _timed(stage.name, run):
                    reasons = stage.judge(query, pool)
                    if len(reasons) != len(pool):
                        raise StageFailed("judged another number of candidates")
            except Exception as error:
                run.failed(stage.name, error)
                continue
            pool = _remove(stage, query, pool, reasons, run)
        return pool

    def _score(self, pipeline: Pipeline, query: Query, pool: Pool, run: _Run) -> Pool:
        if not len(pool):
            return pool
        for scorer in (pipeline.scorer, pipeline.fallback_scorer):
            if scorer is None:
                continue
            calls = [(scorer.name, _bind(_checked_score, scorer, query, pool))]
            done = self._together(calls, pipeline.deadlines.scorer, run)
            if scorer.name in done:
                return replace(pool, scored=done[scorer.name])
        return pool

    def _select(
        self, pipeline: Pipeline, query: Query, pool: Pool, run: _Run
    ) -> tuple[Candidate, ...]:
        try:
            with _timed(pipeline.selector.name, run):
                items = pipeline.selector.select(query, pool)
                if isinstance(pipeline.selector, Explains):
                    run.removals.extend(pipeline.selector.held_back(query, pool, items))
                return items
        except Exception as error:
            run.failed(pipeline.selector.name, error)
            return tuple(pool.finished(row, 1.0, False) for row in range(min(query.k, len(pool))))

    def _together(
        self, calls: Sequence[tuple[str, Callable[[], T]]], limit_ms: float, run: _Run
    ) -> dict[str, T]:
        """Runs the calls side by side; those that fail or overrun are left out and said."""
        started = time.perf_counter()
        context = contextvars.copy_context
        futures: list[tuple[str, Future[tuple[T, float]]]] = [
            (name, self._threads.submit(context().run, _spanned, name, call))
            for name, call in calls
        ]
        done: dict[str, T] = {}
        for name, future in futures:
            left = limit_ms / 1e3 - (time.perf_counter() - started)
            try:
                done[name], run.stage_ms[name] = future.result(max(left, 0.0))
            except TimeoutError:
                future.cancel()
                run.fallbacks.append(Fallback(name, f"no answer within {limit_ms:g} ms"))
            except Exception as error:
                run.failed(name, error)
            if name not in run.stage_ms:
                run.stage_ms[name] = round((time.perf_counter() - started) * 1e3, 3)
        return done


def _bind(call: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    return lambda: call(*arguments)


def _spanned(name: str, call: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    with _TRACER.start_as_current_span(f"stage {name}"):
        value = call()
    return value, round((time.perf_counter() - started) * 1e3, 3)


class _timed:  # noqa: N801 - reads as a statement
    def __init__(self, name: str, run: _Run) -> None:
        self._name, self._run = name, run

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        took = (time.perf_counter() - self._started) * 1e3
        self._run.stage_ms[self._name] = round(took, 3)


def _checked_score(scorer: Scorer, query: Query, pool: Pool) -> Scored:
    scored = scorer.score(query, pool)
    if scored.score.shape != (len(pool),) or scored.p.shape != (len(pool), len(scored.tasks)):
        raise StageFailed(f"scored {scored.score.shape} for {len(pool)} candidates")
    if not np.isfinite(scored.score).any():
        raise StageFailed("no score is finite")
    return scored


def _with(pool: Pool, hydration: Hydration) -> Pool:
    if hydration.videos is not None:
        pool = replace(pool, videos=hydration.videos)
    if hydration.authors is not None:
        pool = replace(pool, authors=hydration.authors)
    if hydration.items is not None:
        pairs = zip(pool.candidates, hydration.items, strict=True)
        pool = replace(pool, candidates=tuple(replace(c, item=item) for c, item in pairs))
    return pool


def _remove(
    stage: Filter, query: Query, pool: Pool, reasons: Sequence[str | None], run: _Run
) -> Pool:
    keep = [row for row, reason in enumerate(reasons) if reason is None]
    if stage.soft and len(keep) < query.k:
        spared = [row for row, reason in enumerate(reasons) if reason is not None]
        keep = sorted(keep + spared[: query.k - len(keep)])
    if len(keep) == len(pool):
        return pool
    kept = set(keep)
    for row, reason in enumerate(reasons):
        if reason is not None and row not in kept:
            candidate = pool.candidates[row]
            run.removals.append(Removal(candidate.video_id, stage.name, reason, candidate.query))
    return pool.keep(keep)


def _cut(stage: Prerank, pool: Pool, worth: np.ndarray, keep: int, run: _Run) -> Pool:
    """The `keep` worthiest, in the order that they came in; the others are removals."""
    order = np.argsort(-worth, kind="stable")  # NaN sorts last
    for place, row in enumerate(order[keep:].tolist(), keep + 1):
        cut, reason = pool.candidates[row], f"place {place} of {len(pool)}: {keep} are ranked"
        run.removals.append(Removal(cut.video_id, stage.name, reason, cut.query))
    return pool.keep(sorted(order[:keep].tolist()))


def _by_task(pool: Pool, name: Literal["weights", "rates"]) -> dict[str, float]:
    """Empty where the scorer says nothing of tasks, as popularity does."""
    if pool.scored is None:
        return {}
    values = [float(value) for value in getattr(pool.scored, name)]
    return dict(zip(pool.scored.tasks, values, strict=True)) if values else {}


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
