"""Reactivation: a trajectory of items for a dormant user, toward a goal.

Knows its request, its reply and its stages by name and order. Does not know how a path is planned
(`models.reasoning`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.pipeline.query import Slate
from serving.pipeline.reply import Item, ItemLookup, Reply, named
from serving.pipeline.requests import Request
from serving.pipeline.runner import Pipeline
from serving.rules.requests import FilteredRequest
from serving.stages.filters import Duplicate, Unavailable
from serving.stages.generated import REACTIVATION, Trajectory
from serving.stages.hydrators import CatalogueItems, UserFeatures
from serving.stages.scorers import SourceScore
from serving.stages.selectors import InOrder
from serving.stages.sources import Popular
from serving.surfaces.spec import StageDependencies, SurfaceSpec


class ReactivationRequest(FilteredRequest):
    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u196", "k": 6}]})

    surface: Literal["reactivation"] = "reactivation"
    k: Annotated[int, Field(ge=1, le=20)] = 6


class Step(Item):
    """A step of the trajectory. `p_convert`: P(the user converts on it)."""

    role: str | None = None
    p_convert: float | None = None


class Goal(BaseModel):
    """The trajectory's goal. `shown` is false where a stage removed it from the slate."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    video_id: str
    title: str
    shown: bool


class OtherGoal(BaseModel):
    """A goal that the model compared and did not take."""

    model_config = ConfigDict(extra="forbid")

    item_id: str
    video_id: str
    title: str
    p_convert: float


class ReactivationReply(Reply):
    """`other_goals`: best first."""

    items: Sequence[Step]
    goal: Goal | None
    other_goals: list[OtherGoal]


def reactivation(deps: StageDependencies) -> Pipeline:
    """A trajectory for a dormant user: items in order, each with its role, toward a goal."""
    return Pipeline(
        name="reactivation",
        query_hydrators=[UserFeatures(deps.store, deps.last_users)],
        sources=[Trajectory(deps.models, deps.catalogue, model=deps.model_of(REACTIVATION))],
        fallback_sources=[Popular(deps.catalogue, deps.popularity, skip_engaged=True)],
        hydrators=[CatalogueItems(deps.catalogue)],
        filters=[Duplicate(), Unavailable(deps.catalogue)],
        scorer=SourceScore(),
        selector=InOrder(),
        deadlines=deps.deadlines,
    )


def _goals(slate: Slate, catalogue: ItemLookup) -> dict[str, Any]:
    """The reply's own fields, from the notes of its steps."""
    notes = slate.items[0].notes if slate.items else {}
    goal = notes.get("goal")
    shown = any(candidate.item_id == goal for candidate in slate.items)
    return {
        "goal": goal and named(goal) | {"title": _title(goal, catalogue), "shown": shown},
        "other_goals": [
            named(other) | {"title": _title(other, catalogue), "p_convert": p}
            for other, p in notes.get("other_goals", ())
        ],
    }


def _title(item_id: str, catalogue: ItemLookup) -> str:
    item = catalogue.get(item_id)
    return item.title if item else item_id


def _canary(_item_id: str) -> Request:
    return ReactivationRequest(user_id="canary", k=2, seed=0)


SURFACE = SurfaceSpec(
    request=ReactivationRequest,
    pipeline=reactivation,
    canary=_canary,
    reply=ReactivationReply,
    own_fields=_goals,
)
