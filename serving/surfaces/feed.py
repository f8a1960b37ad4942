"""The feed: items for a user, ranked by P(action) and the user's own weights.

Knows its request and its stages by name and order. Does not know how a stage works
(`serving.stages`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from serving.pipeline.query import Query
from serving.pipeline.reply import Reply
from serving.pipeline.requests import MAX_CANDIDATES, Request
from serving.pipeline.runner import Pipeline
from serving.rules.definitions import KINDS
from serving.rules.requests import RuledRequest
from serving.stages.filters import AlreadyEngaged, Duplicate, RecentlyShown, Unavailable
from serving.stages.hydrators import CatalogueItems, UserFeatures
from serving.stages.prerank import TasteDotProduct
from serving.stages.scorers import RANKER, PopularityGenre, Ranker, SourceScore
from serving.stages.selectors import InOrder, PlackettLuce
from serving.stages.sources import (
    Fresh,
    GenreSimilar,
    Liked,
    Neighbours,
    Popular,
    ProvidedCandidates,
)
from serving.surfaces.spec import StageDependencies, SurfaceSpec, ranker_hydrators
from streams.contract.bounds import Id
from streams.contract.impression import POPULARITY_ARM, UNRANKED_ARMS

_RERANK = "rerank"

_EXAMPLE: dict[str, Any] = {
    "request_id": "8b6f0f0d7f6e4a70a2f0c7c5f2e6a7d1",
    "slate_id": "5f0c3b0e6a0b4c0c9a55d1b7a3c2e901",
    "surface": "feed",
    "user_id": "u196",
    "seed": 7,
    "served_at_ms": 1_790_000_000_000,
    "release": "r0002",
    "models": {"ranker": 2, "queries": 1, "reactivation": 1},
    "cold_start": False,
    "stale": False,
    "arm": None,
    "experiment": None,
    "weights": {"play": 0.31, "long_view": 0.27, "like": 0.22, "follow": 0.06, "order": 0.14},
    "weights_drawn": False,
    "rates": {"play": 0.31, "long_view": 0.21, "like": 0.12, "follow": 0.01, "order": 0.01},
    "fallbacks": [],
    "items": [
        {
            "item_id": "v242",
            "video_id": "v242",
            "title": "Kolya (1996)",
            "categories": ["Comedy"],
            "genres": ["Comedy"],
            "author_id": None,
            "slot": 0,
            "score": 2.35,
            "p": {"play": 0.62, "long_view": 0.48, "like": 0.33, "follow": 0.04, "order": 0.02},
            "propensity": 0.83,
            "explored": False,
            "source": "genres",
            "impression": "2.eyJpIjoiNWYwYzNiMGU2...",
        }
    ],
    "removed": [
        {
            "item_id": "ml-50",
            "video_id": "ml-50",
            "stage": "already_engaged",
            "reason": "already engaged: like",
        }
    ],
    "removed_total": 1,
    "candidates": 217,
    "stage_ms": {"user_features": 0.6, "genres": 0.3, "ranker": 4.1, "plackett_luce": 0.5},
}


class FeedRequest(RuledRequest):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "u196", "k": 10, "seed": 7},
                {"user_id": "u196", "context": {"device": "phone", "page": "home"}},
                {"user_id": "u196", "filter": "'Comedy' in item.categories"},
            ]
        }
    )

    surface: Literal["feed"] = "feed"
    k: Annotated[int, Field(ge=1, le=100)] = 10
    candidates: Annotated[
        list[Id] | None,
        Field(max_length=MAX_CANDIDATES, description="Rank only these items."),
    ] = None

    def requested_candidates(self) -> tuple[str, ...] | None:
        return None if self.candidates is None else tuple(self.candidates)


class FeedReply(Reply):
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})


def feed(deps: StageDependencies) -> Pipeline:
    """Items for a user: liked, popular, to their taste and new, by P(action) × weights."""
    return Pipeline(
        name="feed",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[
            # First, so that `Duplicate` keeps the fresh copy, which exploration draws from.
            Fresh(deps.catalogue, deps.popularity),
            Liked(deps.likings, deps.activity, deps.catalogue),
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
        scorer=Ranker(
            deps.models,
            deps.catalogue,
            deps.popularity,
            deps.drawn_share,
            model=deps.model_of(RANKER),
        ),
        fallback_scorer=PopularityGenre(deps.catalogue, deps.popularity),
        prerank=TasteDotProduct(deps.catalogue, deps.popularity, deps.activity, deps.likings),
        selector=PlackettLuce(deps.temperature, explore=deps.fresh_share, caps=deps.caps),
        deadlines=deps.deadlines,
    )


def popular_feed(deps: StageDependencies) -> Pipeline:
    """The feed of popularity and of the holdout: the most popular items that the user has not engaged with.

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
        sources=[ProvidedCandidates(deps.catalogue)],
        hydrators=ranker_hydrators(deps),
        filters=[Duplicate(), Unavailable(deps.catalogue)],
        scorer=Ranker(deps.models, deps.catalogue, deps.popularity, model=deps.model_of(RANKER)),
        fallback_scorer=PopularityGenre(deps.catalogue, deps.popularity),
        prerank=TasteDotProduct(deps.catalogue, deps.popularity, deps.activity, deps.likings),
        selector=PlackettLuce(explore=0.0),
        deadlines=deps.deadlines,
    )


def _canary(_item_id: str) -> Request:
    return FeedRequest(user_id="canary", k=3, seed=0)


def _choose(query: Query) -> str:
    if query.candidates is not None:
        return _RERANK
    return POPULARITY_ARM if query.arm in UNRANKED_ARMS else ""


SURFACE = SurfaceSpec(
    request=FeedRequest,
    pipeline=feed,
    canary=_canary,
    reply=FeedReply,
    variants={_RERANK: rerank, POPULARITY_ARM: popular_feed},
    choose=_choose,
    interleaves=True,
    rule_kinds=KINDS,
)
