"""POST /v1/feed, /v1/queries and /v1/reactivation: one reply format for all.

Knows requests and replies. Does not know how a slate is made (`serving.surfaces`).
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from serving.gateway import Gateway
from serving.http.api.errors import Responses, responses
from serving.http.api.examples import FEED_REPLY
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_bytes, json_reply, json_response, problem_entry
from serving.http.auth import needs
from serving.pipeline.reply import to_reply
from serving.pipeline.requests import FeedRequest, QueriesRequest, ReactivationRequest
from serving.pipeline.trace import context_of, tracer
from serving.state.replies import RequestConflict

router = APIRouter(prefix="/v1", tags=["recommend"], dependencies=[Depends(needs("recommend"))])
_ERRORS = responses(400, 401, 403, 409, 413, 415, 422)
_EXAMPLES: Responses = {
    **_ERRORS,
    200: {"content": {"application/json": {"example": FEED_REPLY}}},
}


@router.post("/feed", responses=_EXAMPLES)
def feed(body: FeedRequest, request: Request, gateway: GatewayState) -> Response:
    """Items for a user, best first, each with P(action) per task and the user's weights."""
    return _reply(body, request, gateway)


@router.post("/queries", responses=_ERRORS)
def queries(body: QueriesRequest, request: Request, gateway: GatewayState) -> Response:
    """Search queries to suggest under the item that is playing."""
    return _reply(body, request, gateway)


@router.post("/reactivation", responses=_ERRORS)
def reactivation(body: ReactivationRequest, request: Request, gateway: GatewayState) -> Response:
    """A trajectory for a dormant user: items in order, each with its role, toward a goal."""
    return _reply(body, request, gateway)


def _reply(
    body: FeedRequest | QueriesRequest | ReactivationRequest, request: Request, gateway: Gateway
) -> Response:
    def answer() -> bytes:
        started = time.perf_counter()
        slate = gateway.surfaces.answer(body)
        reply = json_bytes(to_reply(slate, gateway.impression_key, gateway.catalogue))
        gateway.served.record(slate)
        gateway.metrics.observe_reply(slate, time.perf_counter() - started)
        return reply

    name = f"POST /v1/{body.surface}"
    with tracer().start_as_current_span(name, context=context_of(request.headers)):
        try:
            return json_response(gateway.replies.reply(body, answer))
        except RequestConflict as error:
            loc = ("body", "request_id")
            entry = problem_entry({"type": "conflict", "loc": loc, "msg": str(error)})
            return json_reply({"detail": [entry]}, 409)
