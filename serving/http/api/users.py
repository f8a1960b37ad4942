"""/v1/users: GET lists users, GET /{user_id} returns features and weights, DELETE erases.

POST /v1/users/lookup and POST /v1/erasures do the same with the id in the body, for ids that
clients or proxies change in a path. Knows activity, the feature store and erasure. Does not know
the event log.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from features.store import FeatureFrame, Status, StoreDown
from serving.console.feature_watch import plain_row
from serving.gateway import Gateway
from serving.http.api.errors import KEYED, WRITTEN, responses
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.http.paths import decodable_path
from serving.pipeline.query import Slate
from serving.stages.scorers import RANKER
from serving.surfaces.feed import FeedRequest
from streams import erasure
from streams.bus.contract import BusError, MessagesRejected
from streams.contract.bounds import Id

router = APIRouter(prefix="/v1", tags=["users"], dependencies=[Depends(decodable_path)])
UserId = Annotated[Id, Path()]


class UserBody(BaseModel):
    """The user's id, which may be any that an event may have."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user_id": "u196"}]})

    user_id: Id


@router.get("/users", dependencies=[Depends(needs("admin"))], responses=KEYED)
def users(
    gateway: GatewayState,
    order: Annotated[str, Query(pattern="^(latest|dormant)$")] = "latest",
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> Response:
    """Users seen on the bus: the most recently active, or the longest dormant; with their arm."""
    activity = gateway.activity
    found = activity.latest(limit) if order == "latest" else activity.dormant(limit)
    arm_of = gateway.surfaces.deps.experiment.arm_of
    listed = [asdict(user) | {"arm": arm_of(user.user_id)} for user in found]
    return json_reply({"users": listed, "known": len(activity)})


@router.get(
    "/users/{user_id:id}",
    dependencies=[Depends(needs("recommend"))],
    responses={**KEYED, **responses(503)},
)
def user(user_id: UserId, gateway: GatewayState) -> Response:
    """The user's current features and fusion weights, as a request would use them."""
    return _lookup(user_id, gateway)


@router.post("/users/lookup", dependencies=[Depends(needs("recommend"))], responses=WRITTEN)
def look_up_user(body: UserBody, gateway: GatewayState) -> Response:
    """GET /v1/users/{user_id} with the id in the body."""
    return _lookup(body.user_id, gateway)


@router.delete(
    "/users/{user_id:id}",
    status_code=202,
    dependencies=[Depends(needs("admin"))],
    responses=WRITTEN,
)
def delete_user(user_id: UserId, gateway: GatewayState) -> Response:
    """Erases the user: publishes a tombstone, deletes the store's rows and in-memory state.

    The process that owns the event log and feedback files erases them when it reads the
    tombstone; `erased` lists what is already done.
    """
    return _erase(user_id, gateway)


@router.post(
    "/erasures", status_code=202, dependencies=[Depends(needs("admin"))], responses=WRITTEN
)
def erase_user(body: UserBody, gateway: GatewayState) -> Response:
    """DELETE /v1/users/{user_id} with the id in the body."""
    return _erase(body.user_id, gateway)


def _lookup(user_id: str, gateway: Gateway) -> Response:
    now_ms = gateway.clock.now_ms()
    stale = False
    try:
        frame = gateway.store.read("user", [user_id], now_ms)
    except StoreDown as error:
        last_row = gateway.surfaces.deps.last_users.get(user_id)
        if last_row is None:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        frame, stale = last_row, True
    return json_reply(_description(gateway, user_id, frame, stale) | {"now_ms": now_ms})


def _erase(user_id: str, gateway: Gateway) -> Response:
    now_ms = gateway.clock.now_ms()
    try:
        gateway.outbox.send([erasure.erasure_message(user_id, now_ms)])
        gateway.store.erase(user_id, now_ms)
        gateway.replies.forget(user_id)
    except MessagesRejected as error:
        raise HTTPException(413, str(error)) from error
    except (BusError, StoreDown) as error:
        raise HTTPException(
            503, f"{error}; the request can safely be repeated", {"Retry-After": "1"}
        ) from error
    gateway.surfaces.deps.last_users.forget(user_id)
    gateway.activity.forget(user_id)
    gateway.served.erase(user_id)
    return json_reply({"user_id": user_id, "at_ms": now_ms, "erased": ["tombstone", "store"]}, 202)


def _description(
    gateway: Gateway, user_id: str, frame: FeatureFrame, stale: bool
) -> dict[str, Any]:
    slate = gateway.surfaces.answer(FeedRequest(user_id=user_id, k=1, seed=0), explore=False)
    status = Status(int(frame.status[0]))
    return {
        "user_id": user_id,
        "status": status.name.lower(),
        "cold_start": status is not Status.PRESENT,
        "stale": stale,
        "last_event_ms": int(frame.last_event_ms[0]),
        "features": plain_row(frame),
        "tasks": list(slate.weights),
        "weights": dict(slate.weights),
        "ranker": _ranker_tasks(slate, gateway.surfaces.deps.model_of(RANKER)),
        "release": slate.query.release.release_id,
    }


def _ranker_tasks(slate: Slate, model: str) -> dict[str, Any] | None:
    """Tasks and weights of the live ranker; None where a fallback answered.

    `p`: P(action) of the item ranked first.
    """
    if not slate.weights or not slate.items:
        return None
    tasks = [
        {
            "task": task,
            "weight": weight,
            "rate": slate.rates.get(task),
            "p": slate.items[0].p.get(task),
        }
        for task, weight in slate.weights.items()
    ]
    version = slate.query.release.version(model)
    return {"version": version, "video_id": slate.items[0].item_id, "tasks": tasks}
