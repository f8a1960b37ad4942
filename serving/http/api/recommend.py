"""POST /v1/feed, /v1/queries, /v1/reactivation: one envelope for all."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from serving.gateway import Gateway, gateway_of
from serving.http.api.examples import FEED_REPLY
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.monitoring.trace import context_of, tracer
from serving.pipeline.reply import to_reply
from serving.pipeline.requests import FeedRequest, QueriesRequest, ReactivationRequest

router = APIRouter(prefix="/v1", tags=["recommend"], dependencies=[Depends(needs("recommend"))])
State = Annotated[Gateway, Depends(gateway_of)]
_EXAMPLES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {"example": FEED_REPLY}}}
}


@router.post("/feed", responses=_EXAMPLES)
def feed(body: FeedRequest, request: Request, gateway: State) -> Response:
    """Videos for a user, best first, each explained: P(action) per task × the user's weights."""
    return _answer(body, request, gateway)


@router.post("/queries")
def queries(body: QueriesRequest, request: Request, gateway: State) -> Response:
    """What to search for next, for the bar under the video that is playing."""
    return _answer(body, request, gateway)


@router.post("/reactivation")
def reactivation(body: ReactivationRequest, request: Request, gateway: State) -> Response:
    """A dormant user's way back: items in order, each with its role, toward a goal."""
    return _answer(body, request, gateway)


def _answer(
    body: FeedRequest | QueriesRequest | ReactivationRequest, request: Request, gateway: Gateway
) -> Response:
    started = time.perf_counter()
    name = f"POST /v1/{body.surface}"
    with tracer().start_as_current_span(name, context=context_of(request.headers)):
        slate = gateway.surfaces.answer(body)
        reply = to_reply(slate, gateway.impression_key, gateway.catalogue)
    gateway.served.keep(slate)
    gateway.metrics.answered(slate, time.perf_counter() - started)
    return json_reply(reply)
