"""POST /v1/events: behaviour in, one event or up to a thousand.

Validation here tells an honest client what is wrong at once. It is not the door: the
batcher's admission decides for every producer alike, and `?admit=async` leaves it all
to admission, dead letters included.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from serving.gateway import Gateway, gateway_of
from serving.http.api.examples import PLAY
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.monitoring.trace import context_of, current_header_bytes, tracer
from streams.bus.contract import BusError, Outgoing
from streams.contract.events import EVENT
from streams.contract.topics import BEHAVIOUR

MAX_EVENTS = 1_000
router = APIRouter(prefix="/v1", tags=["events"], dependencies=[Depends(needs("events"))])
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"description": f"One event, or a list of up to {MAX_EVENTS}."},
                "examples": {"one": {"value": PLAY}, "several": {"value": [PLAY]}},
            }
        },
    }
}


@router.post("/events", status_code=202, openapi_extra=_BODY)
async def events(
    request: Request,
    gateway: Annotated[Gateway, Depends(gateway_of)],
    admit: Annotated[
        Literal["sync", "async"],
        Query(description="async: forward the bytes unread and let admission judge them"),
    ] = "sync",
) -> Response:
    """Accepts events; 422 names the index and the field of what is wrong, and takes none."""
    raw = await request.body()
    with tracer().start_as_current_span("POST /v1/events", context=context_of(request.headers)):
        headers = current_header_bytes()
        if admit == "async":
            messages = [Outgoing(BEHAVIOUR, raw, headers=headers)]
            users: set[str] = set()
        else:
            messages, users = _checked(raw, headers, gateway)
        await run_in_threadpool(_send, gateway, messages)
    for user_id in users:
        gateway.watch.poke(user_id)
    return json_reply({"accepted": len(messages)}, 202)


def _send(gateway: Gateway, messages: list[Outgoing]) -> None:
    try:
        gateway.outbox.send(messages)
    except BusError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    gateway.metrics.events_accepted.inc(len(messages))


def _checked(
    raw: bytes, headers: dict[str, bytes], gateway: Gateway
) -> tuple[list[Outgoing], set[str]]:
    """Each event as its own message. Raises 422 when any is wrong; then none is sent."""
    found = _parsed(raw)
    problems: list[dict[str, Any]] = []
    messages: list[Outgoing] = []
    users: set[str] = set()
    for index, one in enumerate(found):
        try:
            event = EVENT.validate_python(one)
        except ValidationError as error:
            problems += [_problem(index, detail) for detail in error.errors(include_url=False)]
            continue
        users.add(event.user_id)
        messages.append(
            Outgoing(BEHAVIOUR, orjson.dumps(one), event.user_id.encode(), headers=headers)
        )
    if problems:
        gateway.metrics.events_refused.inc(len(found))
        raise RequestValidationError(problems[:50])
    return messages, users


def _parsed(raw: bytes) -> list[Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body",), "msg": f"not JSON: {error}"}
        raise RequestValidationError([problem]) from error
    found = body if isinstance(body, list) else [body]
    if not found or len(found) > MAX_EVENTS:
        raise RequestValidationError(
            [
                {
                    "type": "too_long",
                    "loc": ("body",),
                    "msg": f"{len(found)} events; send 1 to {MAX_EVENTS} at a time",
                }
            ]
        )
    return found


def _problem(index: int, detail: Any) -> dict[str, Any]:
    """pydantic's error with its place in the body; the input itself is not echoed."""
    kind_tags = {"shown", "skip", "play", "long_view", "like", "share", "follow"}
    kind_tags |= {"query_shown", "query_click", "search", "cart", "order"}
    path = [part for part in detail["loc"] if part not in kind_tags]
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path = ["kind"]
    return {"type": detail["type"], "loc": ("body", index, *path), "msg": detail["msg"]}
