"""The surfaces: one function each, listing the stages that answer it.

Knows stages by name and their order. Does not know how a stage works (`serving.stages`)
nor how it is run (`serving.pipeline.runner`). To add a surface, add a function and its
line in `SURFACES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from features.store import FeatureStore
from models.client import ModelClient
from serving.pipeline.arms import Experiment
from serving.pipeline.query import Query, Release, Slate, SurfaceName
from serving.pipeline.requests import Request, requested_candidates, requested_item
from serving.pipeline.runner import Deadlines, Pipeline, Runner
from serving.pipeline.stage import CandidateHydrator
from serving.stages.caps import Cap
from serving.stages.filters import (
    AlreadyEngaged,
    Duplicate,
    EmptyQuery,
    RecentlyShown,
    TakenDownQuery,
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
    ItemFeatures,
    UserFeatures,
)
from serving.stages.prerank import TasteDotProduct
from serving.stages.scorers import PopularityGenre, Ranker, SourceScore
from serving.stages.selectors import InOrder, PlackettLuce
from serving.stages.sources import (
    Fresh,
    GenreSimilar,
    Liked,
    Neighbours,
    Popular,
    ProvidedCandidates,
)
from serving.state.activity import Activity
from serving.state.blocked_queries import BlockedQueries
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import LastUserRows
from serving.state.likings import Likings
from serving.state.popularity import PopularityCache
from streams.contract.clock import Clock
from streams.contract.impression import POPULARITY_ARM


@dataclass(frozen=True)
class StageDependencies:
    """What stages are built from."""

    store: FeatureStore
    models: ModelClient
    catalogue: LiveCatalogue
    popularity: PopularityCache
    clock: Clock
    activity: Activity = field(default_factory=Activity)
    last_users: LastUserRows = field(default_factory=LastUserRows)
    deadlines: Deadlines = field(default_factory=Deadlines)
    blocked: BlockedQueries = field(default_factory=BlockedQueries)
    caps: tuple[Cap, ...] = ()  # of the feed; none by default
    drawn_share: float = 0.0  # share of feed replies ranked by drawn fusion weights
    fresh_share: float = 0.03  # share of the feed's slots that explore fresh items
    temperature: float = 0.05  # of the feed's draw by score
    experiment: Experiment = field(default_factory=Experiment)
    likings: Likings = field(default_factory=Likings)


def ranker_hydrators(deps: StageDependencies) -> list[CandidateHydrator]:
    """Everything that the ranker reads of a candidate."""
    return [
        CatalogueItems(deps.catalogue),
        ItemFeatures(deps.store),
        AuthorFeatures(deps.store, deps.catalogue),
    ]


def feed(deps: StageDependencies) -> Pipeline:
    """Items for a user: liked, popular, similar to their taste, and new; ranked by P(action) ×
    weights."""
    return Pipeline(
        name="feed",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[
            # First, so that `Duplicate` keeps the fresh copy, which exploration draws from.
            Fresh(deps.catalogue, deps.popularity),
            Liked(deps.likings, deps.activity),
            GenreSimilar(deps.catalogue, deps.popularity),
            Neighbours(deps.catalogue, deps.activity),
            Popular(deps.catalogue, deps.popularity),
        ],
        fallback_sources=[Popular(deps.catalogue, deps.popularity, limit=5_000)],
        hydrators=ranker_hydrators(deps),
        filters=[
            Duplicate(),
            Unavailable(deps.catalogue),
            AlreadyEngaged(deps.activity),
            RecentlyShown(),
        ],
        scorer=Ranker(deps.models, deps.catalogue, deps.popularity, deps.drawn_share),
        fallback_scorer=PopularityGenre(deps.catalogue, deps.popularity),
        prerank=TasteDotProduct(deps.catalogue, deps.popularity, deps.activity, deps.likings),
        selector=PlackettLuce(deps.temperature, explore=deps.fresh_share, caps=deps.caps),
        deadlines=deps.deadlines,
    )


def popular_feed(deps: StageDependencies) -> Pipeline:
    """The feed of the popularity arm: the most popular items that the user has not engaged with.

    A plain baseline: no model, no taste, no exploration. `Popular` goes deeper than in the feed,
    because a user may have engaged with all of the most popular items.
    """
    return Pipeline(
        name="feed",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[Popular(deps.catalogue, deps.popularity, limit=1_000)],
        fallback_sources=[Popular(deps.catalogue, deps.popularity, limit=5_000)],
        hydrators=[CatalogueItems(deps.catalogue)],
        filters=[Unavailable(deps.catalogue), AlreadyEngaged(deps.activity), RecentlyShown()],
        scorer=SourceScore(),
        selector=InOrder(),
        deadlines=deps.deadlines,
    )


def rerank(deps: StageDependencies) -> Pipeline:
    """The caller's own candidates, ranked as in the feed, without exploration."""
    return Pipeline(
        name="rerank",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[ProvidedCandidates()],
        hydrators=ranker_hydrators(deps),
        filters=[Duplicate(), Unavailable(deps.catalogue)],
        scorer=Ranker(deps.models, deps.catalogue, deps.popularity),
        fallback_scorer=PopularityGenre(deps.catalogue, deps.popularity),
        prerank=TasteDotProduct(deps.catalogue, deps.popularity, deps.activity, deps.likings),
        selector=PlackettLuce(explore=0.0),
        deadlines=deps.deadlines,
    )


def queries(deps: StageDependencies) -> Pipeline:
    """Search queries to suggest under the item that is playing."""
    return Pipeline(
        name="queries",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[
            GeneratedQueries(deps.models, deps.store, deps.catalogue, deps.popularity, deps.blocked)
        ],
        fallback_sources=[
            ClickedQueries(deps.popularity, deps.blocked),
            GenreWords(deps.catalogue, deps.blocked),
            PopularQueries(deps.catalogue, deps.popularity, deps.blocked),
        ],
        hydrators=[CatalogueItems(deps.catalogue)],
        filters=[EmptyQuery(), TakenDownQuery(deps.blocked), Duplicate()],
        scorer=SourceScore(),
        selector=PlackettLuce(temperature=0.25, diversity=0.0, explore=0.0),
        deadlines=deps.deadlines,
    )


def reactivation(deps: StageDependencies) -> Pipeline:
    """A trajectory for a dormant user: items in order, each with its role, toward a goal."""
    return Pipeline(
        name="reactivation",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[Trajectory(deps.models, deps.catalogue)],
        fallback_sources=[Popular(deps.catalogue, deps.popularity, skip_engaged=True)],
        hydrators=[CatalogueItems(deps.catalogue)],
        filters=[Duplicate(), Unavailable(deps.catalogue)],
        scorer=SourceScore(),
        selector=InOrder(),
        deadlines=deps.deadlines,
    )


SURFACES: dict[SurfaceName, Callable[[StageDependencies], Pipeline]] = {
    "feed": feed,
    "queries": queries,
    "reactivation": reactivation,
}


class Surfaces:
    """Every surface, built once. Thread safe."""

    def __init__(
        self,
        deps: StageDependencies,
        current_release: Callable[[], Release] = Release,
        *,
        threads: int = 32,
    ) -> None:
        self.deps = deps
        self._current_release = current_release
        self._runner = Runner(threads)
        self._pipelines = {name: build(deps) for name, build in SURFACES.items()}
        self._rerank, self._popular_feed = rerank(deps), popular_feed(deps)

    def answer(self, request: Request, *, explore: bool = True) -> Slate:
        """The slate for one request, pinned to the release that is live now.

        explore: False ranks by the mean of the user's weights, for replies that nothing
            learns from; these belong to no arm.
        """
        query = replace(self.query(request), explore=explore)
        if query.candidates is not None:
            return self._runner.run(self._rerank, query)
        if explore and query.surface == "feed":
            query = replace(query, arm=self.deps.experiment.arm_of(query.user_id))
        if query.arm == POPULARITY_ARM:
            return self._runner.run(self._popular_feed, query)
        return self._runner.run(self._pipelines[query.surface], query)

    def query(self, request: Request) -> Query:
        """The request as a query that carries the user's last good row."""
        last_row = self.deps.last_users.get(request.user_id)
        item_id = requested_item(request)
        return Query(
            request_id=request.request_id,
            surface=request.surface,
            user_id=request.user_id,
            k=request.k,
            now_ms=self.deps.clock.now_ms(),
            seed=request.resolved_seed(),
            item_id=item_id,
            candidates=requested_candidates(request),
            release=self._current_release(),
            user=last_row,
            cold_user=last_row is None,
            cold_item=item_id is not None and self.deps.catalogue.get(item_id) is None,
            stale=last_row is not None,
        )

    def close(self) -> None:
        self._runner.close()
