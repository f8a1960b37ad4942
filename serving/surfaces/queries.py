"""Queries: what a user may search for next, under the item that is playing.

Knows its request, its reply and its stages by name and order. Does not know how a stage works
(`serving.stages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from serving.pipeline.query import Query
from serving.pipeline.reply import Item, Reply
from serving.pipeline.requests import ItemRequest, Request
from serving.pipeline.runner import Pipeline
from serving.stages.filters import Duplicate, EmptyQuery, TakenDownQuery
from serving.stages.generated import (
    QUERIES,
    ClickedQueries,
    GeneratedQueries,
    GenreWords,
    PopularQueries,
)
from serving.stages.hydrators import CatalogueItems, UserFeatures
from serving.stages.scorers import SourceScore
from serving.stages.selectors import InOrder, PlackettLuce
from serving.surfaces.spec import StageDependencies, SurfaceSpec

_BEST = "best"


class QueriesRequest(ItemRequest):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "u196", "item_id": "v242", "k": 3}]}
    )

    surface: Literal["queries"] = "queries"
    k: Annotated[int, Field(ge=1, le=20)] = 3
    explore: Annotated[
        bool,
        Field(
            description="False: the best queries in order, none drawn. A streamed reply then gives "
            "each as soon as it is decided; drawn ones are decided together."
        ),
    ] = True


class QueryItem(Item):
    """A query to suggest. `anchor`: it was clicked under the item."""

    query: str
    anchor: bool | None = None


class QueriesReply(Reply):
    items: Sequence[QueryItem]


def queries(deps: StageDependencies) -> Pipeline:
    """Search queries to suggest under the item that is playing."""
    return Pipeline(
        name="queries",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[_generated(deps)],
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


def best_queries(deps: StageDependencies) -> Pipeline:
    """The same without a draw: as many as are shown, in the model's order."""
    sources = [replace(_generated(deps), spare=1)]
    return replace(queries(deps), sources=sources, selector=InOrder())


def _generated(deps: StageDependencies) -> GeneratedQueries:
    return GeneratedQueries(
        deps.models,
        deps.store,
        deps.catalogue,
        deps.popularity,
        deps.blocked,
        model=deps.model_of(QUERIES),
    )


def _choose(query: Query) -> str:
    request = query.request
    return _BEST if isinstance(request, QueriesRequest) and not request.explore else ""


def _canary(item_id: str) -> Request:
    return QueriesRequest(user_id="canary", item_id=item_id, k=2, seed=0)


SURFACE = SurfaceSpec(
    request=QueriesRequest,
    pipeline=queries,
    canary=_canary,
    reply=QueriesReply,
    variants={_BEST: best_queries},
    choose=_choose,
    streams=True,
    rule_kinds=(),  # rules are about items, and this surface returns texts
)
