"""POST /v1/events: writes one behaviour event, or a list of up to 1,000, to the bus.

Knows the reply. Does not know how an event is checked (`serving.http.api.event_batch`). Does not
decide admission: the batcher validates the events of every producer. The check here gives
clients the same verdict at once; `?admit=async` skips it, and invalid events become dead letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from serving.gateway import Gateway
from serving.http.api.errors import WRITTEN
from serving.http.api.event_batch import (
    MAX_EVENTS,
    BadBatch,
    CheckedEvent,
    RefusedEvent,
    check_event,
    refuse_profile,
    split_events,
)
from serving.http.api.examples import PLAY
from serving.http.api.gateway_state import GatewayState, send
from serving.http.api.json import json_reply, problem_entry
from serving.http.auth import needs, permits
from serving.pipeline.trace import context_of, current_header_bytes, tracer
from streams.bus.contract import Outgoing
from streams.codec.decode import reject_unreadable
from streams.contract.declaration import contract
from streams.contract.topics import BEHAVIOUR
from streams.imports.mapping import BadMapping

_MAX_PROBLEMS = 50
_TOO_LARGE = "too_large"
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


class EventsReply(BaseModel):
    """How many events were accepted, and which were not."""

    accepted: int
    refused: list[RefusedEvent] = []
    left_out: int | None = None


@dataclass
class _Batch:
    """The events of one request. `problems`: of the refused ones, for the error reply.

    owner: whether the caller may state attributes of users.
    """

    owner: bool
    messages: list[Outgoing] = field(default_factory=list)
    users: set[str] = field(default_factory=set)
    refused: list[RefusedEvent] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)

    def refuse(self, index: int, checked: CheckedEvent) -> None:
        self.refused.append(checked.refused(index))
        self.problems += [
            problem_entry({**problem, "loc": ("body", index, *problem["loc"])})
            for problem in checked.problems
        ]


@router.post(
    "/events",
    status_code=202,
    openapi_extra=_BODY,
    responses={**WRITTEN, 202: {"model": EventsReply}},
)
async def events(
    request: Request,
    gateway: GatewayState,
    admit: Annotated[
        Literal["sync", "async"],
        Query(description="async: forward events unchecked; invalid ones become dead letters"),
    ] = "sync",
    all_or_nothing: Annotated[
        bool, Query(description="one refused event refuses all of the list")
    ] = False,
    mapping: Annotated[
        str,
        Query(description="the body is another system's: segment, snowplow or ga4", max_length=64),
    ] = "",
) -> Response:
    """Accepts events. `refused` names the index, field and cause of each that is not accepted.

    With `mapping`, indexes count the events that the mapping finds; `left_out` counts documents
    and elements of which it makes none, and 202 is the reply also where it finds no event.

    422 if none is accepted, 413 if all are too large.
    """
    body = await request.body()
    with tracer().start_as_current_span("POST /v1/events", context=context_of(request.headers)):
        headers = current_header_bytes()
        try:
            parts = [body] if admit == "async" and not _is_list(body) else split_events(body)
            left_out = None
            if mapping:
                parts, left_out = await run_in_threadpool(_mapped, parts, mapping, gateway)
        except (BadBatch, BadMapping) as error:
            return _bad_batch(str(error))
        batch = _Batch(owner=_may_state_profiles(request))
        (_add_unchecked if admit == "async" else _add_checked)(batch, parts, gateway)
        gateway.metrics.count_refused_events(each.cause for each in batch.refused)
        if batch.refused and (all_or_nothing or not batch.messages):
            return _none_accepted(batch)
        messages = [message._replace(headers=headers) for message in batch.messages]
        await run_in_threadpool(_send, gateway, messages)
    for user_id in batch.users:
        gateway.watch.notify(user_id)
    reply = _counts(len(messages), batch.refused)
    return json_reply(reply if left_out is None else {**reply, "left_out": left_out}, 202)


def _mapped(parts: Sequence[bytes], name: str, gateway: Gateway) -> tuple[list[bytes], int]:
    """The events of another system's documents, and how many are left out."""
    from streams.imports.documents import mapped

    events, left_out = mapped(parts, name, gateway.clock.now_ms())
    if len(events) > MAX_EVENTS:
        raise BadBatch(f"{len(events)} events in these documents; send at most {MAX_EVENTS}")
    return events, left_out


def _may_state_profiles(request: Request) -> bool:
    """Whether no event has to be looked at for being a profile."""
    return not contract().signals.user_attributes or permits(request, "admin")


def _is_list(body: bytes) -> bool:
    return body.lstrip().startswith(b"[")


def _add_checked(batch: _Batch, parts: Sequence[bytes], gateway: Gateway) -> None:
    """Adds the events that admission would accept now, keyed by user."""
    now_ms = gateway.clock.now_ms()
    for index, raw in enumerate(parts):
        forbidden = None if batch.owner else refuse_profile(raw)
        checked = forbidden or check_event(raw, now_ms, gateway.admission)
        if checked.event is None:
            batch.refuse(index, checked)
        else:
            user_id = checked.event.user_id
            batch.users.add(user_id)
            batch.messages.append(Outgoing(BEHAVIOUR, raw, user_id.encode()))


def _add_unchecked(batch: _Batch, parts: Sequence[bytes], gateway: Gateway) -> None:
    """Adds all events but those that are larger than the topic accepts, and forbidden ones."""
    limit = gateway.admission.max_event_bytes
    for index, raw in enumerate(parts):
        if len(raw) > limit:
            cause, msg = reject_unreadable(raw, limit)
            problem = {"type": cause, "loc": (), "msg": msg}
            batch.refuse(index, CheckedEvent(raw, None, cause, (problem,)))
        elif not batch.owner and (forbidden := refuse_profile(raw)):
            batch.refuse(index, forbidden)
        else:
            batch.messages.append(Outgoing(BEHAVIOUR, raw))


def _counts(accepted: int, refused: Sequence[RefusedEvent]) -> dict[str, Any]:
    return {"accepted": accepted, "refused": [each.model_dump() for each in refused]}


def _bad_batch(why: str) -> Response:
    entry = problem_entry({"type": "json_invalid", "loc": ("body",), "msg": why})
    return json_reply({"detail": [entry], **_counts(0, [])}, 422)


def _none_accepted(batch: _Batch) -> Response:
    too_large = all(refused.cause == _TOO_LARGE for refused in batch.refused)
    reply = {"detail": batch.problems[:_MAX_PROBLEMS], **_counts(0, batch.refused)}
    return json_reply(reply, 413 if too_large else 422)


def _send(gateway: Gateway, messages: list[Outgoing]) -> None:
    send(gateway, messages)
    gateway.metrics.events_accepted.inc(len(messages))
