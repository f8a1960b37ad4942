"""Runs the stages of a surface: in order, in parallel within a group, with deadlines.

Knows the laws that every stage (`serving.pipeline.stage`) must keep. Does not know any
particular stage (`serving.stages`) nor which surface uses which (`serving.surfaces`).

    query hydrators ∥ → sources ∥ → filters → pre-rank → candidate hydrators ∥ → scorer → selector

Filters and the pre-rank run before the candidate hydrators, so features are read and
scored only for candidates that can still reach the slate.

Laws, enforced here (`tests/serving/test_stage_laws.py`):
- A query hydrator writes only the fields that it declares.
- A candidate hydrator may not drop, add or reorder candidates: a result of another length
  is discarded and reported as a fallback.
- A failed source means fewer candidates, never a failed reply.
- What may wait for a server runs on a thread with a deadline; what is in memory runs on the
  request's own thread, which has one of the process's turns (`serving.clients.turns`).
- A filter gives a reason for each removal; a soft filter never leaves fewer than k.
- A pre-rank keeps at most its limit, never fewer than k, and gives each cut candidate's
  rank as the reason; if it fails, the sources' order decides, reported as a fallback.
- A scorer that fails or overruns its deadline is replaced by its fallback, which is reported.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np
from opentelemetry import trace

from serving.clients.turns import TURNS
from serving.pipeline.pool import Pool, pool_of
from serving.pipeline.query import RULES, Candidate, Fallback, Query, Scored, Slate
from serving.pipeline.removals import Removals
from serving.pipeline.stage import (
    AnyFilter,
    CandidateHydrator,
    Hydration,
    Prerank,
    QueryHydrator,
    Removed,
    Scorer,
    Selector,
    Source,
    removed_by,
)

T = TypeVar("T")
_TRACER = trace.get_tracer("tidemill.serving")


@dataclass(frozen=True)
class Deadlines:
    """Maximum wait per stage group, in ms. Their sum bounds the time of a reply."""

    query_hydrators: float = 200.0
    sources: float = 400.0
    hydrators: float = 250.0
    scorer: float = 400.0


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A stage to run. in_memory: it waits for nothing."""

    name: str
    run: Callable[[], T]
    in_memory: bool = False


class StageFailed(RuntimeError):
    """A stage returned a result that breaks its law."""


@dataclass
class RunReport:
    """What happened while one request ran through the stages."""

    fallbacks: list[Fallback] = field(default_factory=list)
    removals: Removals = field(default_factory=Removals)
    stage_ms: dict[str, float] = field(default_factory=dict)

    def add_failure(self, stage: str, error: BaseException) -> None:
        self.fallbacks.append(Fallback(stage, error_text(error)))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_ms[stage] = _ms_since(started)


@dataclass(frozen=True)
class Pipeline:
    """One surface's stages, as data. Building it runs nothing."""

    name: str
    query_hydrators: Sequence[QueryHydrator]
    sources: Sequence[Source]
    hydrators: Sequence[CandidateHydrator]
    filters: Sequence[AnyFilter]
    scorer: Scorer
    selector: Selector
    fallback_sources: Sequence[Source] = ()  # asked one by one while there are no candidates
    fallback_scorer: Scorer | None = None
    prerank: Prerank | None = None  # None: every candidate is scored
    deadlines: Deadlines = Deadlines()


class Runner:
    """Runs pipelines on one thread pool. Thread safe."""

    def __init__(self, threads: int = 32) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="stage")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def run(self, pipeline: Pipeline, query: Query) -> Slate:
        """The slate for `query`. A failed stage is reported in it and never raises."""
        report = RunReport()
        with TURNS.computing(), _TRACER.start_as_current_span(f"surface {pipeline.name}") as span:
            span.set_attribute("tidemill.release", query.release.release_id)
            query = self._hydrate_query(pipeline, query, report)
            found = self._fetch(pipeline, query, report)
            pool = self._filter(pipeline, query, found, report)
            if pool.from_source(RULES).all() and len(found) and pipeline.fallback_sources:
                found_again = self._fetch_fallback(pipeline, query, report)
                pool = self._filter(pipeline, query, found_again, report)
            pool = self._prerank(pipeline, query, pool, report)
            query, pool = self._hydrate(pipeline, query, pool, report)
            pool = self._score(pipeline, query, pool, report)
            items = self._select(pipeline, query, pool, report)
            span.set_attribute("tidemill.fallbacks", len(report.fallbacks))
        return slate_of(query, pool, items, report, len(found))

    def _hydrate_query(self, pipeline: Pipeline, query: Query, report: RunReport) -> Query:
        calls = [_Call(h.name, partial(h.hydrate, query)) for h in pipeline.query_hydrators]
        done = self._run_parallel(calls, pipeline.deadlines.query_hydrators, report)
        for hydrator in pipeline.query_hydrators:
            hydrated = done.get(hydrator.name)
            if hydrated is not None:
                query = replace(query, **{f: getattr(hydrated, f) for f in hydrator.fields})
        return query

    def _fetch(self, pipeline: Pipeline, query: Query, report: RunReport) -> Pool:
        limit_ms = pipeline.deadlines.sources
        found = self._fetch_from(pipeline.sources, query, limit_ms, report)
        return found if len(found) else self._fetch_fallback(pipeline, query, report)

    def _fetch_fallback(self, pipeline: Pipeline, query: Query, report: RunReport) -> Pool:
        """Candidates of the first fallback source that has any."""
        for source in pipeline.fallback_sources:
            found = self._fetch_from([source], query, pipeline.deadlines.sources, report)
            if len(found):
                report.fallbacks.append(Fallback("sources", f"answered by {source.name}"))
                return found
        return pool_of([])

    def _fetch_from(
        self, sources: Sequence[Source], query: Query, limit_ms: float, report: RunReport
    ) -> Pool:
        calls = [
            _Call(each.name, partial(each.fetch, query), getattr(each, "in_memory", False))
            for each in sources
        ]
        done = self._run_parallel(calls, limit_ms, report)
        return pool_of([done.get(source.name) or () for source in sources])

    def _filter(self, pipeline: Pipeline, query: Query, pool: Pool, report: RunReport) -> Pool:
        for stage in pipeline.filters:
            try:
                with report.timed(stage.name):
                    removed = removed_by(stage, query, pool)
            except Exception as error:
                report.add_failure(stage.name, error)
                continue
            pool = _apply_filter(stage, query, pool, removed, report)
        return pool

    def _prerank(self, pipeline: Pipeline, query: Query, pool: Pool, report: RunReport) -> Pool:
        stage = pipeline.prerank
        if stage is None or len(pool) <= max(stage.keep, query.k):
            return pool
        scores = np.arange(len(pool), 0, -1)  # the sources' order, used if the stage fails
        try:
            with report.timed(stage.name):
                found = np.asarray(stage.prerank_scores(query, pool))
                if found.shape != scores.shape:
                    raise StageFailed("returned another number of candidates")
                scores = found
        except Exception as error:
            report.add_failure(stage.name, error)
        return _keep_best(stage, pool, scores, max(stage.keep, query.k), report)

    def _hydrate(
        self, pipeline: Pipeline, query: Query, pool: Pool, report: RunReport
    ) -> tuple[Query, Pool]:
        if not len(pool):
            return query, pool
        calls = [_Call(h.name, partial(h.hydrate, query, pool)) for h in pipeline.hydrators]
        remembered = self._remembered(pipeline.hydrators, query, pool, report)
        left = [call for call in calls if call.name not in remembered]
        done = remembered | self._run_parallel(left, pipeline.deadlines.hydrators, report)
        for name, hydration in done.items():
            if not hydration.fits(len(pool)):
                report.add_failure(name, StageFailed("returned another number of candidates"))
                continue
            pool = _add_columns(pool, hydration)
        return replace(query, stale=query.stale or len(done) < len(calls)), pool

    def _remembered(
        self, hydrators: Sequence[CandidateHydrator], query: Query, pool: Pool, report: RunReport
    ) -> dict[str, Hydration]:
        """What hydrators answer from memory, by name; a failure there is left to `hydrate`."""
        found: dict[str, Hydration] = {}
        for each in hydrators:
            recall = getattr(each, "from_memory", None)
            if recall is None:
                continue
            with contextlib.suppress(Exception):
                hydration, took_ms = _run_traced(_Call(each.name, partial(recall, query, pool)))
                if hydration is not None:
                    found[each.name], report.stage_ms[each.name] = hydration, took_ms
        return found

    def _score(self, pipeline: Pipeline, query: Query, pool: Pool, report: RunReport) -> Pool:
        if not len(pool):
            return pool
        for scorer in (pipeline.scorer, pipeline.fallback_scorer):
            if scorer is None:
                continue
            score = partial(_checked_score, scorer, query, pool)
            calls = [_Call(scorer.name, score, getattr(scorer, "in_memory", False))]
            done = self._run_parallel(calls, pipeline.deadlines.scorer, report)
            if scorer.name in done:
                return replace(pool, scored=done[scorer.name])
        return pool

    def _select(
        self, pipeline: Pipeline, query: Query, pool: Pool, report: RunReport
    ) -> tuple[Candidate, ...]:
        selector = pipeline.selector
        try:
            with report.timed(selector.name):
                items = selector.select(query, pool)
                explain = getattr(selector, "held_back", None)  # `ExplainsRemovals`
                if explain is not None:
                    report.removals.add(explain(query, pool, items))
                return items
        except Exception as error:
            report.add_failure(selector.name, error)
            return tuple(pool.slate_item(row, 1.0, False) for row in range(min(query.k, len(pool))))

    def _run_parallel(
        self, calls: Sequence[_Call[T]], limit_ms: float, report: RunReport
    ) -> dict[str, T]:
        """Results by stage name; stages that fail or overrun are left out and reported."""
        started = time.perf_counter()
        waiting: list[tuple[str, Future[tuple[T, float]]]] = [
            (c.name, self._threads.submit(contextvars.copy_context().run, _run_traced, c))
            for c in calls
            if not c.in_memory
        ]
        done: dict[str, T] = {}
        for call in calls:
            if call.in_memory:
                self._run_here(call, done, report)
        for name, future in waiting:
            left_s = limit_ms / 1e3 - (time.perf_counter() - started)
            try:
                with TURNS.waiting():
                    done[name], report.stage_ms[name] = future.result(max(left_s, 0.0))
            except TimeoutError:
                future.cancel()
                report.fallbacks.append(Fallback(name, f"no answer within {limit_ms:g} ms"))
            except Exception as error:
                report.add_failure(name, error)
            if name not in report.stage_ms:
                report.stage_ms[name] = _ms_since(started)
        return done

    def _run_here(self, call: _Call[T], done: dict[str, T], report: RunReport) -> None:
        started = time.perf_counter()
        try:
            done[call.name], report.stage_ms[call.name] = _run_traced(call)
        except Exception as error:
            report.add_failure(call.name, error)
            report.stage_ms[call.name] = _ms_since(started)


def slate_of(
    query: Query, pool: Pool, items: tuple[Candidate, ...], report: RunReport, found: int
) -> Slate:
    """The slate of these items of the pool. found: how many candidates the sources returned."""
    return Slate(
        query=query,
        items=items,
        weights=_by_task(pool, "weights"),
        rates=_by_task(pool, "rates"),
        fallbacks=tuple(report.fallbacks),
        removals=report.removals,
        stage_ms=report.stage_ms,
        candidate_count=found,
        ranker_inputs=pool.ranker_inputs(items),
        log_density=None if pool.scored is None else pool.scored.log_density,
        pool=pool,
    )


def _run_traced(call: _Call[T]) -> tuple[T, float]:
    """The call's result and its duration in ms."""
    started = time.perf_counter()
    if (
        not trace.get_current_span().is_recording()
    ):  # a span would be dropped; making one is not free
        return call.run(), _ms_since(started)
    with _TRACER.start_as_current_span(f"stage {call.name}"):
        value = call.run()
    return value, _ms_since(started)


def _ms_since(started_s: float) -> float:
    return round((time.perf_counter() - started_s) * 1e3, 3)


def _checked_score(scorer: Scorer, query: Query, pool: Pool) -> Scored:
    scored = scorer.score(query, pool)
    if scored.score.shape != (len(pool),) or scored.p.shape != (len(pool), len(scored.tasks)):
        raise StageFailed(f"scored {scored.score.shape} for {len(pool)} candidates")
    if not np.isfinite(scored.score).any():
        raise StageFailed("no score is finite")
    return scored


def _add_columns(pool: Pool, hydration: Hydration) -> Pool:
    if hydration.item_features is not None:
        pool = replace(pool, item_features=hydration.item_features)
    if hydration.author_features is not None:
        pool = replace(pool, author_features=hydration.author_features)
    if hydration.catalogue_items is not None:
        pool = replace(pool, about=hydration.catalogue_items)
    return pool


def _apply_filter(
    stage: AnyFilter, query: Query, pool: Pool, removed: Removed, report: RunReport
) -> Pool:
    gone = np.flatnonzero(removed.mask)
    kept = len(pool) - len(gone)
    if stage.soft and kept < query.k:
        gone = gone[query.k - kept :]
    if not len(gone):
        return pool
    report.removals.add_rows(stage.name, pool, gone, removed.reason)
    keep = np.ones(len(pool), bool)
    keep[gone] = False
    return pool.take(np.flatnonzero(keep))


def _keep_best(
    stage: Prerank, pool: Pool, scores: np.ndarray, keep: int, report: RunReport
) -> Pool:
    """The `keep` best candidates in their original order; the others become removals."""
    order = np.argsort(-scores, kind="stable")  # NaN sorts last
    cut = order[keep:]
    place = {row: at for at, row in enumerate(cut.tolist(), keep + 1)}
    whole = len(pool)
    report.removals.add_rows(
        stage.name, pool, cut, lambda row: f"place {place[row]} of {whole}: {keep} are ranked"
    )
    return pool.take(np.sort(order[:keep]))


def _by_task(pool: Pool, name: Literal["weights", "rates"]) -> dict[str, float]:
    """{} where the scorer has no tasks, as the popularity scorer."""
    if pool.scored is None:
        return {}
    values = [float(value) for value in getattr(pool.scored, name)]
    return dict(zip(pool.scored.tasks, values, strict=True)) if values else {}


def error_text(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
