"""/v1/experiments: GET lists them with their results, POST starts one, DELETE stops one.

Knows the store of experiments. Does not know how results are computed
(`models.experiments.evaluation`) nor how a release is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from models.client import ModelUnavailable
from models.experiments.definition import (
    Arm,
    Experiment,
    ExperimentError,
    Guard,
    checked,
    to_json,
)
from models.experiments.evaluation import described
from serving.gateway import Gateway
from serving.http.api.errors import KEYED, WRITTEN, responses
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.surfaces import Surfaces

router = APIRouter(
    prefix="/v1/experiments", tags=["operations"], dependencies=[Depends(needs("admin"))]
)
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern="^[A-Za-z0-9._-]{1,32}$")]
Task = Annotated[str, Field(min_length=1, max_length=64)]
_EXAMPLE: dict[str, Any] = {
    "name": "ranker-7",
    "arms": [
        {"name": "ranker", "share": 0.95, "policy": "live"},
        {"name": "challenger", "share": 0.05, "policy": "release:r0007"},
    ],
    "guard": {"metric": "play", "worse_by": 0.05},
}


class ArmBody(BaseModel):
    """policy: live, popularity, release:ID, or interleave:POLICY+POLICY."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    share: Share
    policy: Annotated[str, Field(max_length=200)] = "live"


class GuardBody(BaseModel):
    """Stops the experiment once an arm's metric is worse than the first arm's by this share."""

    model_config = ConfigDict(extra="forbid")

    metric: Task = "play"
    worse_by: Share = 0.0
    level: Level = 0.01


class ExperimentBody(BaseModel):
    """An experiment; the first arm is the control."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    arms: Annotated[list[ArmBody], Field(min_length=1, max_length=16)]
    surface: Annotated[str, Field(max_length=32)] = "feed"
    reward: Task = "play"
    guard: GuardBody | None = None
    level: Level = 0.05
    tight_at: Annotated[int, Field(ge=1, le=10**9)] = 20_000

    def stated(self, now_ms: int) -> Experiment:
        arms = tuple(Arm(**arm.model_dump()) for arm in self.arms)
        guard = None if self.guard is None else Guard(**self.guard.model_dump())
        own = self.model_dump() | {"arms": arms, "guard": guard, "started_ms": now_ms}
        return Experiment(**own)


@router.get("", responses=KEYED)
def experiments(gateway: GatewayState) -> Response:
    """Every experiment with its arms, its state and its last results; the holdout's share."""
    store = gateway.experiments
    return json_reply({"experiments": described(store), "holdout_share": store.holdout_share})


@router.post("", status_code=201, responses={**WRITTEN, **responses(409)})
def start(body: ExperimentBody, gateway: GatewayState) -> Response:
    """Starts an experiment: from the next request on its users are served by their arms.

    Releases that its arms name must be loaded: `tidemill experiments start` loads them.
    """
    found = body.stated(gateway.clock.now_ms())
    try:
        check_served(checked(found), gateway)
        gateway.experiments.start(found)
    except ExperimentError as error:
        raise HTTPException(409, str(error)) from error
    except OSError as error:
        raise HTTPException(503, f"the experiments cannot be written: {error}") from error
    return json_reply(to_json(found), 201)


@router.delete("/{name}", responses={**KEYED, **responses(404, 503)})
def stop(name: Name, gateway: GatewayState) -> Response:
    """Stops an experiment: its users are served by the live models from the next request on."""
    try:
        changed = gateway.experiments.stop(name, at_ms=gateway.clock.now_ms())
    except ExperimentError as error:
        raise HTTPException(404, str(error)) from error
    except OSError as error:
        raise HTTPException(503, f"the experiments cannot be written: {error}") from error
    return json_reply({"name": name, "running": False, "changed": changed})


def check_served(found: Experiment, gateway: Gateway) -> None:
    """Raises `ExperimentError` where the surface or a release cannot be served here."""
    spec = gateway.surfaces.specs.get(found.surface)
    if spec is None:
        raise ExperimentError(f"surfaces are {', '.join(gateway.surfaces.specs)}")
    can = Surfaces.policies(spec)
    for arm in found.arms:
        if not arm.kinds <= can:
            raise ExperimentError(
                f"{found.surface} cannot serve {arm.policy}: it serves {', '.join(sorted(can))}"
            )
        for name in arm.releases:
            _check_loaded(name, gateway)


def _check_loaded(name: str, gateway: Gateway) -> None:
    release = gateway.releases.named(name)
    if release is None:
        raise ExperimentError(f"no release {name!r}: GET /v1/models lists them")
    for model, version in release.models.items():
        try:
            loaded = version in gateway.models.versions(model)
        except ModelUnavailable:
            loaded = False
        if not loaded:
            raise ExperimentError(
                f"{model} version {version} of {name} is not loaded: start the experiment with "
                "`tidemill experiments start`, which loads it"
            )
