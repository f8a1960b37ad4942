"""A slate that is made item by item, where the stages decide its items in order.

Knows which pipelines decide in order, and how the runner's stages are applied to candidates as
they arrive. Does not know any particular stage (`serving.stages`) nor HTTP.

What a stream gives is what `Runner.run` would: the stages see every candidate once, in the
source's order. A source that fails after its first candidates leaves its slots to the fallback
sources.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import cast

from opentelemetry import trace

from serving.clients.turns import TURNS
from serving.pipeline.pool import Pool, pool_of
from serving.pipeline.query import Candidate, Fallback, Query, Slate
from serving.pipeline.runner import Pipeline, Runner, RunReport, error_text, slate_of
from serving.pipeline.stage import StreamSource

_TRACER = trace.get_tracer("tidemill.serving")
_Part = Sequence[Candidate] | Exception | None


def decides_in_order(pipeline: Pipeline) -> bool:
    """Whether an item is decided before all candidates are known: one source that streams, a
    selector that keeps its order, and no stage that compares candidates."""
    return (
        len(pipeline.sources) == 1
        and hasattr(pipeline.sources[0], "fetch_stream")
        and getattr(pipeline.selector, "keeps_order", False)
        and pipeline.prerank is None
        and not any(stage.soft for stage in pipeline.filters)
    )


class StreamingRunner(Runner):
    """A runner that can also give a slate's items as they are decided."""

    def stream(self, pipeline: Pipeline, query: Query) -> Generator[Slate, None, None]:
        """Slates of one request: each begins with the items of the one before, the last is whole.

        Only one where items are not decided in order. Closing the iterator ends the work.
        """
        if not decides_in_order(pipeline):
            yield self.run(pipeline, query)
            return
        report = RunReport()
        with _TRACER.start_as_current_span(f"surface {pipeline.name}") as span:
            span.set_attribute("tidemill.release", query.release.release_id)
            with TURNS.computing():
                taken = _Taken(self._hydrate_query(pipeline, query, report), report)
            for part in self._parts(pipeline, taken):
                yield self._take(pipeline, taken, part)
            if len(taken.items) < query.k and (taken.broken or not taken.items):
                before = taken.found
                with TURNS.computing():
                    fallback = self._fetch_fallback(pipeline, taken.query, report).candidates
                self._take(pipeline, taken, fallback)
                taken.found = before or taken.found  # as in `run`: of the first source that has any
            span.set_attribute("tidemill.fallbacks", len(report.fallbacks))
        yield taken.slate()

    def _parts(self, pipeline: Pipeline, taken: _Taken) -> Iterator[Sequence[Candidate]]:
        """The source's candidates as they arrive, until the slate is full.

        The source runs on a thread, so that the deadline holds whatever it does; it is closed
        after the part it is working on.
        """
        source, limit_ms = cast(StreamSource, pipeline.sources[0]), pipeline.deadlines.sources
        arrived: queue.SimpleQueue[_Part] = queue.SimpleQueue()
        left = threading.Event()
        started = time.perf_counter()
        context = contextvars.copy_context()
        self._threads.submit(context.run, _produce, source, taken.query, arrived.put, left)
        try:
            while len(taken.items) < taken.query.k:
                left_s = limit_ms / 1e3 - (time.perf_counter() - started)
                try:
                    part = arrived.get(timeout=max(left_s, 0.0))
                except queue.Empty:
                    taken.break_off(source.name, f"no answer within {limit_ms:g} ms")
                    return
                if part is None:
                    return
                if isinstance(part, Exception):
                    taken.break_off(source.name, error_text(part))
                    return
                yield part
        finally:
            left.set()
            taken.report.stage_ms[source.name] = round((time.perf_counter() - started) * 1e3, 3)

    def _take(self, pipeline: Pipeline, taken: _Taken, part: Sequence[Candidate]) -> Slate:
        """The slate with the part's items, computed in a turn of its own."""
        with TURNS.computing():
            return self._take_now(pipeline, taken, part)

    def _take_now(self, pipeline: Pipeline, taken: _Taken, part: Sequence[Candidate]) -> Slate:
        report = RunReport(removals=taken.report.removals)
        taken.found += len(part)
        pool = self._filter(pipeline, taken.query, pool_of([[*taken.kept, *part]]), report)
        pool = _only(pool, part)
        taken.kept += pool.candidates
        taken.query, pool = self._hydrate(pipeline, taken.query, pool, report)
        taken.pool = pool = self._score(pipeline, taken.query, pool, report)
        left = replace(taken.query, k=taken.query.k - len(taken.items))
        taken.items += self._select(pipeline, left, pool, report)
        taken.add(report)
        return taken.slate()


@dataclass
class _Taken:
    """What is decided so far.

    kept: candidates that passed the filters, so that later ones are compared with them. broken:
    why the source ended early.
    """

    query: Query
    report: RunReport
    kept: list[Candidate] = field(default_factory=list)
    items: list[Candidate] = field(default_factory=list)
    pool: Pool = field(default_factory=lambda: pool_of([]))
    found: int = 0
    broken: str | None = None

    def break_off(self, source: str, reason: str) -> None:
        self.broken = reason
        self.report.fallbacks.append(Fallback(source, reason))

    def add(self, part: RunReport) -> None:
        """Adds a part's times, and its failures where they are new."""
        total = self.report
        total.fallbacks += [each for each in part.fallbacks if each not in total.fallbacks]
        for stage, ms in part.stage_ms.items():
            total.stage_ms[stage] = round(total.stage_ms.get(stage, 0.0) + ms, 3)

    def slate(self) -> Slate:
        made = slate_of(self.query, self.pool, tuple(self.items), self.report, self.found)
        return replace(made, broken=self.broken)


def _only(pool: Pool, part: Sequence[Candidate]) -> Pool:
    """The rows of `pool` that hold these candidates."""
    wanted = {id(candidate) for candidate in part}
    given = [] if pool.given is None else pool.given.tolist()
    return pool.take([row for row, candidate in enumerate(given) if id(candidate) in wanted])


def _produce(
    source: StreamSource, query: Query, put: Callable[[_Part], None], left: threading.Event
) -> None:
    """Puts each part, and at the end None or what failed."""
    try:
        with closing(source.fetch_stream(query)) as parts:
            for part in parts:
                put(part)
                if left.is_set():
                    return
        put(None)
    except Exception as error:
        put(error)
