"""GET /v1/users and /v1/users/{id}: who there is, what is known of one; DELETE forgets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query
from fastapi.responses import Response

from features.store import FeatureFrame, Status, StoreDown
from serving.console.feature_watch import plain_row
from serving.gateway import Gateway, gateway_of
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.pipeline.query import Slate
from serving.pipeline.requests import FeedRequest
from serving.stages.scorers import RANKER
from streams import erasure
from streams.bus.contract import BusError

router = APIRouter(prefix="/v1/users", tags=["users"])
State = Annotated[Gateway, Depends(gateway_of)]
UserId = Annotated[str, Path(min_length=1, max_length=128)]


@router.get("", dependencies=[Depends(needs("admin"))])
def users(
    gateway: State,
    order: Annotated[str, Query(pattern="^(latest|dormant)$")] = "latest",
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> Response:
    """Users seen on the bus: the latest active, or those with a history who fell silent."""
    activity = gateway.activity
    found = activity.latest(limit) if order == "latest" else activity.dormant(limit)
    return json_reply({"users": [asdict(user) for user in found], "known": len(activity)})


@router.get("/{user_id}", dependencies=[Depends(needs("recommend"))])
def user(user_id: UserId, gateway: State) -> Response:
    """The user's features as a request would read them now, and their fusion weights."""
    now_ms = gateway.clock.now_ms()
    stale = False
    try:
        frame = gateway.store.read("user", [user_id], now_ms)
    except StoreDown as error:
        last = gateway.surfaces.parts.last_users.get(user_id)
        if last is None:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        frame, stale = last, True
    return json_reply(_described(gateway, user_id, frame, stale) | {"now_ms": now_ms})


@router.delete("/{user_id}", status_code=202, dependencies=[Depends(needs("admin"))])
def erase(user_id: UserId, gateway: State) -> Response:
    """Forgets the user: a tombstone on the bus, the store's row, and what this process holds.

    The log and the feedback files are cleared by the process that owns them, which reads
    the same tombstone; `erased` names what is already done.
    """
    now_ms = gateway.clock.now_ms()
    try:
        gateway.outbox.send([erasure.message(user_id, now_ms)])
        gateway.store.erase(user_id, now_ms)
    except (BusError, StoreDown) as error:
        raise HTTPException(
            503, f"{error}; nothing is lost by asking again", {"Retry-After": "1"}
        ) from error
    gateway.surfaces.parts.last_users.forget(user_id)
    gateway.activity.forget(user_id)
    gateway.served.erase(user_id)
    return json_reply({"user_id": user_id, "at_ms": now_ms, "erased": ["tombstone", "store"]}, 202)


def _described(gateway: Gateway, user_id: str, frame: FeatureFrame, stale: bool) -> dict[str, Any]:
    slate = gateway.surfaces.answer(FeedRequest(user_id=user_id, k=1, seed=0), explores=False)
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
        "ranker": _ranker(slate),
        "release": slate.query.release.release_id,
    }


def _ranker(slate: Slate) -> dict[str, Any] | None:
    """Tasks × weights by the live ranker; None where something else answered.

    `p`: P(action) of the video that it would put first.
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
    version = slate.query.release.version(RANKER)
    return {"version": version, "video_id": slate.items[0].video_id, "tasks": tasks}
