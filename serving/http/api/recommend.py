"""POST /v1/{surface}, one route for each surface, and GET /v1/surfaces.

Knows requests and replies, whole and as server-sent events. Does not know any one surface
(`serving.surfaces`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from serving.gateway import Gateway
from serving.http.api.errors import KEYED, responses
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_bytes, json_reply, json_response, problem_entry
from serving.http.auth import needs
from serving.http.capacity import Busy, Capacity
from serving.http.event_stream import DOCUMENTED, EVENTS, Emit, event_stream, wants_events
from serving.pipeline.requests import Request
from serving.pipeline.trace import context_of, tracer
from serving.state.replies import RequestConflict
from serving.surfaces import SurfaceSpec, load_surfaces

router = APIRouter(prefix="/v1", tags=["recommend"], dependencies=[Depends(needs("recommend"))])
_ERRORS = responses(400, 401, 403, 406, 409, 413, 415, 422, 429)


def _endpoint(spec: SurfaceSpec) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def ask(body: Request, request: HttpRequest, gateway: GatewayState) -> Response:
        capacity: Capacity = request.app.state.capacity
        streamed = wants_events(request)
        if streamed and not spec.streams:
            return json_reply({"detail": _not_streamed(spec, gateway)}, 406)
        try:
            if streamed:
                return await event_stream(capacity, partial(_stream, body, request, gateway))
            return await capacity.run(partial(_reply, body, request, gateway))
        except RequestConflict as error:
            loc = ("body", "request_id")
            entry = problem_entry({"type": "conflict", "loc": loc, "msg": str(error)})
            return json_reply({"detail": [entry]}, 409)
        except Busy as busy:
            wait = {"Retry-After": str(busy.retry_after_s)}
            return json_reply({"detail": str(busy)}, 429, wait)

    ask.__annotations__["body"] = spec.request  # FastAPI reads and documents the surface's model
    return ask


def _add_route(spec: SurfaceSpec) -> None:
    router.add_api_route(
        f"/{spec.name}",
        _endpoint(spec),
        methods=["POST"],
        name=spec.name,
        summary=spec.name.replace("_", " ").capitalize(),
        description=spec.about,
        responses={
            **_ERRORS,
            200: {"model": spec.reply, **({"content": DOCUMENTED} if spec.streams else {})},
        },
    )


for _spec in load_surfaces().values():
    _add_route(_spec)


@router.get("/surfaces", responses=KEYED)
def surfaces(gateway: GatewayState) -> Response:
    """The surfaces: what each answers, its request's JSON Schema and its panel on the page."""
    listed = [
        {
            "surface": spec.name,
            "about": spec.about,
            "panel": spec.panel,
            "streams": spec.streams,
            "request": spec.request.model_json_schema(),
        }
        for spec in gateway.surfaces.specs.values()
    ]
    return json_reply({"surfaces": listed})


def _reply(body: Request, request: HttpRequest, gateway: Gateway) -> Response:
    def answer() -> bytes:
        started = time.perf_counter()
        slate = gateway.surfaces.answer(body)
        reply = json_bytes(gateway.surfaces.reply(slate, gateway.impression_key))
        gateway.served.record(slate)
        gateway.metrics.observe_reply(slate, time.perf_counter() - started)
        return reply

    with _span(body, request):
        return json_response(gateway.replies.reply(body, answer))


def _stream(body: Request, request: HttpRequest, gateway: Gateway, emit: Emit) -> None:
    """Emits the reply: each item once it is decided, then all else.

    The reply is kept for repeated requests as a whole one is; a repeated request gets its items at
    once.
    """
    spec, key = gateway.surfaces.specs[body.surface], gateway.impression_key
    sent, broken = 0, None

    def answer() -> bytes:
        nonlocal sent, broken
        started = time.perf_counter()
        with closing(gateway.surfaces.stream(body)) as slates:
            for slate in slates:
                for item in spec.to_items(slate, key, first=sent):
                    emit("item", json_bytes(item))
                    sent += 1
        gateway.served.record(slate)
        gateway.metrics.observe_reply(slate, time.perf_counter() - started)
        broken = slate.broken
        return json_bytes(gateway.surfaces.reply(slate, key))

    with _span(body, request):
        reply = orjson.loads(gateway.replies.reply(body, answer))
        for item in reply.pop("items")[sent:]:
            emit("item", json_bytes(item))
        if broken is None:
            emit("done", json_bytes(reply))
        else:
            emit("error", json_bytes({"detail": broken, **reply}))


def _span(body: Request, request: HttpRequest) -> AbstractContextManager[Any]:
    name = f"POST /v1/{body.surface}"
    return tracer().start_as_current_span(name, context=context_of(request.headers))


def _not_streamed(spec: SurfaceSpec, gateway: Gateway) -> str:
    streamed = [each.name for each in gateway.surfaces.specs.values() if each.streams]
    others = f" {', '.join(streamed)} can be streamed." if streamed else ""
    return (
        f"{spec.name} is decided as a whole: send accept: application/json, not {EVENTS}.{others}"
    )
