"""The surfaces: a module each, which lists the stages that answer it, and all of them, running.

Knows which surfaces there are (`serving.registry`). Does not know what any of them answers, how a
stage works (`serving.stages`) nor how it is run (`serving.pipeline.runner`). To add a surface, add
a module with a `SURFACE` here and its name to the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from importlib import import_module
from typing import Any

from models.experiments.definition import INTERLEAVE, LIVE, POPULARITY, RELEASE
from serving.pipeline.arms import ArmQueries, arm_queries, interleaved
from serving.pipeline.query import Query, Release, Slate
from serving.pipeline.requests import Request, RequestContext
from serving.pipeline.runner import Pipeline
from serving.pipeline.streamed import StreamingRunner
from serving.pipeline.trace import record_context
from serving.registry import SURFACES
from serving.stages.rules import with_rules
from serving.surfaces.spec import StageDependencies, SurfaceSpec

__all__ = ["StageDependencies", "SurfaceSpec", "Surfaces", "UnknownSurface", "load_surfaces"]


class UnknownSurface(ValueError):
    """A request to a surface that is not served here; the message lists those that are."""


def load_surfaces(names: Sequence[str] = SURFACES) -> dict[str, SurfaceSpec]:
    """The surfaces by name.

    Raises:
        ValueError: a module's surface has another name than the module.
    """
    found = {name: import_module(f"serving.surfaces.{name}").SURFACE for name in names}
    for name, spec in found.items():
        if spec.name != name:
            raise ValueError(f"serving.surfaces.{name} is the surface {spec.name!r}")
    return found


def _in_experiments(query: Query) -> bool:
    """Not where nothing learns from the reply, or the caller states the candidates."""
    return query.explore and query.candidates is None


def rule_kinds(specs: Mapping[str, SurfaceSpec]) -> dict[str, Sequence[str]]:
    """Surface -> the kinds of rules that act on it."""
    return {name: spec.rule_kinds for name, spec in specs.items()}


class Surfaces:
    """Every surface, built once. Thread safe."""

    def __init__(
        self,
        deps: StageDependencies,
        current_release: Callable[[], Release] = Release,
        *,
        threads: int = 32,
        named_release: Callable[[str], Release | None] = lambda _: None,
    ) -> None:
        """named_release: the release of an experiment's arm; None where it is unknown."""
        self.deps = deps
        self._named_release = named_release
        # The second policy of an interleaved slate, so that both take the time of one.
        self._second = ThreadPoolExecutor(4, thread_name_prefix="interleave")
        self._current_release = current_release
        self._runner = StreamingRunner(threads)
        self.specs = load_surfaces()
        deps.rules.know_surfaces(rule_kinds(self.specs))
        self._pipelines = {
            (spec.name, variant): build(deps)
            for spec in self.specs.values()
            for variant, build in {"": spec.pipeline, **spec.variants}.items()
        }
        self._under_rules = {
            name: with_rules(pipeline, deps.rule_reader, deps.popularity, deps.activity)
            for name, pipeline in self._pipelines.items()
        }

    def answer(self, request: Request, *, explore: bool = True) -> Slate:
        """The slate for one request, pinned to the release that is live now.

        explore: False ranks by the mean of the user's weights, for replies that nothing
            learns from; these belong to no arm.
        """
        spec, query = self._asked(request, explore)
        if not _in_experiments(query):
            return self._run(spec, query)
        arm = self._arm(spec, query)
        if arm.second is None:
            return self._run(spec, arm.first)
        second = self._second.submit(copy_context().run, self._run, spec, arm.second)
        return interleaved(arm.query, self._run(spec, arm.first), second.result())

    def stream(self, request: Request) -> Generator[Slate, None, None]:
        """The slate of `answer` while it is made: each has further items, the last is whole.

        Of an interleaved slate, which no surface that streams has, only the first policy's.
        """
        spec, query = self._asked(request, explore=True)
        if _in_experiments(query):
            query = self._arm(spec, query).first
        return self._runner.stream(self._pipeline(spec, query), query)

    @staticmethod
    def policies(spec: SurfaceSpec) -> frozenset[str]:
        """The kinds of arms that the surface can serve."""
        own = {POPULARITY} if POPULARITY in spec.variants else set()
        return frozenset({LIVE, RELEASE, *own, *({INTERLEAVE} if spec.interleaves else ())})

    def _asked(self, request: Request, explore: bool) -> tuple[SurfaceSpec, Query]:
        query = replace(self.query(request), explore=explore)
        record_context(query.context)
        return self.specs[query.surface], query

    def _arm(self, spec: SurfaceSpec, query: Query) -> ArmQueries:
        assigned = self.deps.experiments.assign(query.surface, query.user_id)
        return arm_queries(query, assigned, self._named_release, self.policies(spec))

    def _run(self, spec: SurfaceSpec, query: Query) -> Slate:
        return self._runner.run(self._pipeline(spec, query), query)

    def _pipeline(self, spec: SurfaceSpec, query: Query) -> Pipeline:
        under_rules = self.deps.rule_reader.act_on(query)
        pipelines = self._under_rules if under_rules else self._pipelines
        return pipelines[query.surface, spec.choose(query)]

    def read_request(self, body: Any) -> Request:
        """A request as JSON, checked by its surface's model.

        Raises:
            UnknownSurface: it names none, or one that is not served here.
            pydantic.ValidationError: a field is missing, unknown or out of bounds.
        """
        stated = body.get("surface") if isinstance(body, dict) else None
        if not isinstance(stated, str) or stated not in self.specs:
            raise UnknownSurface(f"Input should be one of {', '.join(self.specs)}")
        return self.specs[stated].request.model_validate(body)

    def reply(self, slate: Slate, key: bytes) -> dict[str, Any]:
        """The slate as its surface's reply. `key` signs the impression tokens."""
        return self.specs[slate.query.surface].to_reply(slate, key, self.deps.catalogue)

    def query(self, request: Request) -> Query:
        """The request as a query that carries the user's last good row."""
        last_row = self.deps.last_users.get(request.user_id)
        item_id = request.requested_item()
        return Query(
            request_id=request.request_id,
            surface=request.surface,
            user_id=request.user_id,
            k=request.k,
            now_ms=self.deps.clock.now_ms(),
            seed=request.resolved_seed(),
            item_id=item_id,
            candidates=request.requested_candidates(),
            release=self._current_release(),
            user=last_row,
            cold_user=last_row is None,
            cold_item=item_id is not None and self.deps.catalogue.get(item_id) is None,
            stale=last_row is not None,
            context=request.context or RequestContext(),
            request=request,
        )

    def close(self) -> None:
        self._second.shutdown(wait=False, cancel_futures=True)
        self._runner.close()
