"""/v1/users: GET lists users; /{user_id}: GET describes, PUT states attributes, DELETE erases.

POST /v1/users/lookup, /v1/users and /v1/erasures do the same with the id in the body, for ids that
clients or proxies change in a path; POST /v1/users also takes a list. Knows activity, the feature
store, erasure and the event that states attributes. Does not know the event log.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from features.rows.attributes import user_attributes
from features.store import FeatureFrame, Status, StoreDown
from serving.console.feature_watch import plain_row
from serving.gateway import Gateway
from serving.http.api.errors import KEYED, WRITTEN, invalid_body, responses
from serving.http.api.gateway_state import GatewayState, send
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.http.paths import decodable_path
from serving.pipeline.query import Slate
from serving.pipeline.reply import named
from serving.pipeline.trace import current_header_bytes
from serving.stages.scorers import RANKER
from serving.surfaces.feed import FeedRequest
from streams import erasure
from streams.bus.contract import BusError, MessagesRejected, Outgoing
from streams.contract.attributes import AttributeValues
from streams.contract.bounds import Id
from streams.contract.declaration import contract
from streams.contract.events import Profile
from streams.contract.topics import BEHAVIOUR

router = APIRouter(prefix="/v1", tags=["users"], dependencies=[Depends(decodable_path)])
UserId = Annotated[Id, Path()]
MAX_USERS = 1_000
_ATTRIBUTES: dict[str, Any] = {"attributes": {"plan": "gold", "age": 41}}
_UNDECLARED = (
    "no attributes of users are declared: add a section [users.attributes] to the settings"
)


class UserBody(BaseModel):
    """The user's id, which may be any that an event may have."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user_id": "u196"}]})

    user_id: Id


class AttributesBody(BaseModel):
    """The user's attributes, in place of all that were stated before."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_ATTRIBUTES]})

    attributes: AttributeValues


class StatedUser(AttributesBody):
    """A user's id and attributes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u196", **_ATTRIBUTES}]})

    user_id: Id


StatedUsers = Annotated[
    list[StatedUser],
    Field(min_length=1, max_length=MAX_USERS),
    BeforeValidator(
        lambda stated: stated if isinstance(stated, list) else [stated],
        json_schema_input_type=StatedUser
        | Annotated[list[StatedUser], Field(min_length=1, max_length=MAX_USERS)],
    ),
]


@router.get("/users", dependencies=[Depends(needs("admin"))], responses=KEYED)
def users(
    gateway: GatewayState,
    order: Annotated[str, Query(pattern="^(latest|dormant)$")] = "latest",
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> Response:
    """Users seen on the bus: the most recently active, or the longest dormant; with their arm."""
    activity = gateway.activity
    found = activity.latest(limit) if order == "latest" else activity.dormant(limit)
    assigned = ((user, gateway.experiments.assign("feed", user.user_id)) for user in found)
    listed = [asdict(user) | {"arm": each.arm.name if each else None} for user, each in assigned]
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


@router.put(
    "/users/{user_id:id}",
    status_code=202,
    dependencies=[Depends(needs("admin"))],
    responses=WRITTEN,
)
def put_user(user_id: UserId, body: AttributesBody, gateway: GatewayState) -> Response:
    """States the user's attributes. Requests use them once the event is folded into the row."""
    _publish(gateway, [_profile(gateway, user_id, body, ("body",))])
    return json_reply({"accepted": 1, "user_id": user_id}, 202)


@router.post("/users", status_code=202, dependencies=[Depends(needs("admin"))], responses=WRITTEN)
def put_users(body: StatedUsers, gateway: GatewayState) -> Response:
    """PUT /v1/users/{user_id} with the ids in the body: one user, or a list.

    One invalid user refuses all. Of two entries with the same id the later one counts.
    """
    profiles = [
        _profile(gateway, user.user_id, user, ("body", index)) for index, user in enumerate(body)
    ]
    # Of events of one millisecond, either could be folded last.
    _publish(gateway, list({profile.user_id: profile for profile in profiles}.values()))
    return json_reply({"accepted": len(profiles)}, 202)


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


def _profile(
    gateway: Gateway, user_id: str, body: AttributesBody, loc: tuple[str | int, ...]
) -> Profile:
    """The event that states the attributes. Raises `RequestValidationError` with fields below `loc`."""
    if not contract().signals.user_attributes:
        problem = {"type": "undeclared_attribute", "loc": (*loc, "attributes"), "msg": _UNDECLARED}
        raise RequestValidationError([problem])
    try:
        return Profile.model_validate(
            {
                "event_id": uuid.uuid4().hex,
                "user_id": user_id,
                "event_time_ms": gateway.clock.now_ms(),
                "attributes": body.attributes,
            }
        )
    except ValidationError as error:
        raise invalid_body(error, loc) from error


def _publish(gateway: Gateway, profiles: Sequence[Profile]) -> None:
    headers = current_header_bytes()
    messages = [
        Outgoing(
            BEHAVIOUR,
            profile.model_dump_json(exclude={"text"}, exclude_none=True).encode(),
            profile.user_id.encode(),
            headers=headers,
        )
        for profile in profiles
    ]
    send(gateway, messages)
    for profile in profiles:
        gateway.watch.notify(profile.user_id)


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
    gateway.forget(user_id)
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
        **_stated(frame),
        "tasks": list(slate.weights),
        "weights": dict(slate.weights),
        "ranker": _ranker_tasks(slate, gateway.surfaces.deps.model_of(RANKER)),
        "release": slate.query.release.release_id,
    }


def _stated(frame: FeatureFrame) -> Mapping[str, Any]:
    """The user's attributes, and which of them are to be marked as undeclared."""
    attributes = user_attributes(frame)
    return {"attributes": attributes, "undeclared": contract().users.marked(attributes)}


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
    return {"version": version, **named(slate.items[0].item_id), "tasks": tasks}
