"""The surfaces: which stages answer which question. One plain function each.

Knows stages by name and how to put them in a row. Does not know how a stage works
(`serving.stages`) nor how it is run (`serving.pipeline.runner`). Adding a recommendation
system adds a function and a line in `SURFACES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from features.store import FeatureStore
from models.client import ModelClient
from serving.pipeline.query import Query, Release, Slate, SurfaceName
from serving.pipeline.requests import Request, candidates_of, video_of
from serving.pipeline.runner import Deadlines, Pipeline, Runner
from serving.pipeline.stage import CandidateHydrator
from serving.stages.caps import Cap
from serving.stages.filters import (
    AlreadyEngaged,
    Duplicate,
    EmptyQuery,
    RecentlyShown,
    Unavailable,
)
from serving.stages.generated import (
    ClickedQueries,
    GeneratedQueries,
    GenreWords,
    PopularQueries,
    Trajectory,
)
from serving.stages.hydrators import (
    AuthorFeatures,
    CatalogueItems,
    UserFeatures,
    VideoFeatures,
)
from serving.stages.prerank import TasteTowers
from serving.stages.scorers import AsGiven, PopularTaste, Ranker
from serving.stages.selectors import InOrder, PlackettLuce
from serving.stages.sources import Fresh, Given, Near, Neighbours, Popular
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import LastUsers, Snapshot
from streams.contract.clock import Clock


@dataclass(frozen=True)
class Parts:
    """What stages are made of."""

    store: FeatureStore
    models: ModelClient
    catalogue: LiveCatalogue
    snapshot: Snapshot
    clock: Clock
    activity: Activity = field(default_factory=Activity)
    last_users: LastUsers = field(default_factory=LastUsers)
    deadlines: Deadlines = field(default_factory=Deadlines)
    caps: tuple[Cap, ...] = ()  # the feed's; off unless settings ask
    drawn_share: float = 0.0  # of the feed's answers: ranked by weights that are drawn


def ranked(parts: Parts) -> list[CandidateHydrator]:
    """What the ranker needs to know of a candidate."""
    return [
        CatalogueItems(parts.catalogue),
        VideoFeatures(parts.store),
        AuthorFeatures(parts.store, parts.catalogue),
    ]


def feed(parts: Parts) -> Pipeline:
    """Videos for a user: popular, near their taste, and new; ranked by P(action) × weights."""
    return Pipeline(
        name="feed",
        query_hydrators=[UserFeatures(parts.store, parts.last_users)],
        sources=[
            Fresh(parts.catalogue, parts.snapshot),  # first, so that its share is not lost
            Near(parts.catalogue, parts.snapshot),
            Neighbours(parts.catalogue, parts.activity),
            Popular(parts.catalogue, parts.snapshot),
        ],
        fallback_sources=[Popular(parts.catalogue, parts.snapshot, limit=5_000)],
        hydrators=ranked(parts),
        filters=[
            Duplicate(),
            Unavailable(parts.catalogue),
            AlreadyEngaged(parts.activity),
            RecentlyShown(),
        ],
        scorer=Ranker(parts.models, parts.catalogue, parts.snapshot, parts.drawn_share),
        fallback_scorer=PopularTaste(parts.catalogue, parts.snapshot),
        prerank=TasteTowers(parts.catalogue, parts.snapshot, parts.activity),
        selector=PlackettLuce(caps=parts.caps),
        deadlines=parts.deadlines,
    )


def rerank(parts: Parts) -> Pipeline:
    """The caller's own candidates, ranked like the feed. Nothing is explored."""
    return Pipeline(
        name="rerank",
        query_hydrators=[UserFeatures(parts.store, parts.last_users)],
        sources=[Given()],
        hydrators=ranked(parts),
        filters=[Duplicate(), Unavailable(parts.catalogue)],
        scorer=Ranker(parts.models, parts.catalogue, parts.snapshot),
        fallback_scorer=PopularTaste(parts.catalogue, parts.snapshot),
        prerank=TasteTowers(parts.catalogue, parts.snapshot, parts.activity),
        selector=PlackettLuce(explore=0.0),
        deadlines=parts.deadlines,
    )


def queries(parts: Parts) -> Pipeline:
    """What to search for next, under the video that is playing."""
    return Pipeline(
        name="queries",
        query_hydrators=[UserFeatures(parts.store, parts.last_users)],
        sources=[GeneratedQueries(parts.models, parts.store, parts.catalogue, parts.snapshot)],
        fallback_sources=[
            ClickedQueries(parts.catalogue, parts.snapshot),
            GenreWords(parts.catalogue),
            PopularQueries(parts.catalogue, parts.snapshot),
        ],
        hydrators=[CatalogueItems(parts.catalogue)],
        filters=[EmptyQuery(), Duplicate()],
        scorer=AsGiven(),
        selector=PlackettLuce(temperature=0.25, diversity=0.0, explore=0.0),
        deadlines=parts.deadlines,
    )


def reactivation(parts: Parts) -> Pipeline:
    """A way back for a dormant user: items in order, each with its role, toward a goal."""
    return Pipeline(
        name="reactivation",
        query_hydrators=[UserFeatures(parts.store, parts.last_users)],
        sources=[Trajectory(parts.models)],
        fallback_sources=[Popular(parts.catalogue, parts.snapshot, unseen=True)],
        hydrators=[CatalogueItems(parts.catalogue)],
        filters=[Duplicate(), Unavailable(parts.catalogue)],
        scorer=AsGiven(),
        selector=InOrder(),
        deadlines=parts.deadlines,
    )


SURFACES: dict[SurfaceName, Callable[[Parts], Pipeline]] = {
    "feed": feed,
    "queries": queries,
    "reactivation": reactivation,
}


class Surfaces:
    """Every surface, built once, answering requests. Thread safe."""

    def __init__(
        self, parts: Parts, release: Callable[[], Release] = Release, *, threads: int = 32
    ) -> None:
        self.parts = parts
        self._release = release
        self._runner = Runner(threads)
        self._pipelines = {name: build(parts) for name, build in SURFACES.items()}
        self._rerank = rerank(parts)

    def answer(self, request: Request, *, explores: bool = True) -> Slate:
        """The slate for one request, pinned to the release that is current now.

        explores False: by the mean of the user's weights, to look at and not to learn from.
        """
        query = replace(self.query(request), explores=explores)
        pipeline = self._rerank if query.candidates else self._pipelines[query.surface]
        return self._runner.run(pipeline, query)

    def query(self, request: Request) -> Query:
        """The request as a query that already carries the user's last good row."""
        last = self.parts.last_users.get(request.user_id)
        video_id = video_of(request)
        return Query(
            request_id=request.request_id,
            surface=request.surface,
            user_id=request.user_id,
            k=request.k,
            now_ms=self.parts.clock.now_ms(),
            seed=request.drawn_seed(),
            video_id=video_id,
            candidates=candidates_of(request),
            release=self._release(),
            user=last,
            cold_user=last is None,
            cold_video=video_id is not None and self.parts.catalogue.get(video_id) is None,
            stale=last is not None,
        )

    def close(self) -> None:
        self._runner.close()
