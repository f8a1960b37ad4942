"""Slates of the real feed pipeline, in process, and what each of its stages kept.

Knows serving's parts and the trained ranker's bundle. Does not know the planted truth.

The stages are those of `serving.surfaces.feed`; only the pre-rank and the selector are
wrapped, to record what passes through them, and deadlines are wide, since nothing is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.offline.point_in_time.replay import to_event_table
from models.ranking.ple.config import RankerConfig
from models.ranking.ple.recipe import RankerRecipe
from models.ranking.ple.runtime import RankerRuntime
from models.recipe import TrainingLog
from models.registry import REGISTRY
from models.release.in_process import InProcessClient
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from serving.pipeline.pool import Pool
from serving.pipeline.query import Candidate, Query, Release, Scored
from serving.pipeline.runner import Deadlines, Pipeline, Runner
from serving.pipeline.stage import Prerank, Source
from serving.stages.selectors import PlackettLuce
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.likings import Likings
from serving.state.popularity import PopularityCache
from serving.surfaces import StageDependencies
from serving.surfaces.feed import feed
from streams.bus.contract import Stamp
from streams.catalogue import Catalogue
from streams.contract.clock import ManualClock
from streams.contract.events import CatalogueItem, ItemAdded
from streams.progress import no_progress

_RANKER = "ranker"
RELEASE = Release("r0001", {_RANKER: 1})
_WIDE = Deadlines(60_000.0, 60_000.0, 60_000.0, 60_000.0)


@dataclass
class Passed:
    """What passed through one request: ids of items, in the order of each stage.

    candidates: what the sources returned, after filters. scored: what the pre-rank kept, with
    its columns. slate: what was served. plain: the same without exploration.
    """

    candidates: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    scored: Scored | None = None
    slate: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    fallbacks: int = 0


@dataclass(frozen=True)
class _RecordingPrerank:
    inner: Prerank
    passed: Passed
    name: str = "prerank"

    @property
    def keep(self) -> int:
        return self.inner.keep

    def prerank_scores(self, query: Query, pool: Pool) -> np.ndarray:
        self.passed.candidates = pool.item_ids
        return self.inner.prerank_scores(query, pool)


@dataclass(frozen=True)
class _RecordingSelector:
    inner: PlackettLuce
    passed: Passed
    name: str = "selector"

    def select(self, query: Query, pool: Pool) -> tuple[Candidate, ...]:
        self.passed.kept = pool.item_ids
        self.passed.candidates = self.passed.candidates or self.passed.kept
        self.passed.scored = pool.scored
        plain = replace(self.inner, explore=0.0).select(query, pool)
        self.passed.plain = [candidate.item_id for candidate in plain]
        return self.inner.select(query, pool)


@dataclass(frozen=True)
class ServedState:
    """Everything that a gateway would hold at one moment."""

    deps: StageDependencies
    runner: Runner

    def pipeline(self, extra: Sequence[Source] = ()) -> Pipeline:
        """The feed's pipeline, with additional sources."""
        usual = feed(self.deps)
        return replace(usual, sources=[*usual.sources, *extra])

    def answer(self, pipeline: Pipeline, user_id: str, at_ms: int, seed: int, k: int) -> Passed:
        """One request through the pipeline, recorded."""
        passed = Passed()
        selector, prerank = pipeline.selector, pipeline.prerank
        assert isinstance(selector, PlackettLuce)
        assert prerank is not None
        recorded = replace(
            pipeline,
            selector=_RecordingSelector(selector, passed),
            prerank=_RecordingPrerank(prerank, passed),
        )
        slate = self.runner.run(
            recorded, Query("r", "feed", user_id, k, at_ms, seed, release=RELEASE)
        )
        passed.slate = [candidate.item_id for candidate in slate.items]
        passed.fallbacks = len(slate.fallbacks)
        return passed


def serve(
    log: TrainingLog, items: list[CatalogueItem], folder: Path, config: RankerConfig, seed: int
) -> ServedState:
    """Folds the log into the served state and trains the ranker on it."""
    store, activity, fold = MemoryFeatureStore(), Activity(), Catalogue()
    events = to_event_table(log.events)
    for entity in DEFINITIONS:
        store.fold(entity, events, Stamp("replayed", 0, 0))
    activity.fold(events)
    for item in items:
        fold.apply(ItemAdded(event_id=item.video_id, event_time_ms=item.created_ms, item=item))
    catalogue, clock = LiveCatalogue(fold), ManualClock(log.until_ms)
    popularity = PopularityCache(store, catalogue, clock)
    popularity.refresh()
    models = _trained(log, folder, config, seed)
    likings = Likings(ReleaseStore(folder / "releases").bundle_folder)
    likings.load(RELEASE)
    deps = StageDependencies(
        store, models, catalogue, popularity, clock, activity, deadlines=_WIDE, likings=likings
    )
    return ServedState(deps, Runner(threads=4))


def _trained(log: TrainingLog, folder: Path, config: RankerConfig, seed: int) -> InProcessClient:
    """The ranker, trained, sealed and loaded as in a release."""
    store = ReleaseStore(folder / "releases")
    staging = store.staging(_RANKER)
    RankerRecipe(config).train(log, staging, seed=seed, progress=no_progress)
    bundle = store.seal(
        _RANKER,
        staging,
        runtime=REGISTRY[_RANKER].runtime,
        signature=RankerRuntime.signature,
        created_ms=log.until_ms,
    )
    ModelRepository(folder / "repository").add(bundle)
    client = InProcessClient(folder / "repository")
    client.load(_RANKER)
    return client
