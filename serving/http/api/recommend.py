"""POST /v1/{surface}, one route for each surface, and GET /v1/surfaces.

Knows requests and replies. Does not know any one surface (`serving.surfaces`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from fastapi.responses import Response

from serving.gateway import Gateway
from serving.http.api.errors import KEYED, responses
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_bytes, json_reply, json_response, problem_entry
from serving.http.auth import needs
from serving.http.capacity import Busy, Capacity
from serving.pipeline.requests import Request
from serving.pipeline.trace import context_of, tracer
from serving.state.replies import RequestConflict
from serving.surfaces import SurfaceSpec, load_surfaces

router = APIRouter(prefix="/v1", tags=["recommend"], dependencies=[Depends(needs("recommend"))])
_ERRORS = responses(400, 401, 403, 409, 413, 415, 422, 429)


def _endpoint(spec: SurfaceSpec) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def ask(body: Request, request: HttpRequest, gateway: GatewayState) -> Response:
        capacity: Capacity = request.app.state.capacity
        try:
            return await capacity.run(partial(_reply, body, request, gateway))
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
        responses={**_ERRORS, 200: {"model": spec.reply}},
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

    name = f"POST /v1/{body.surface}"
    with tracer().start_as_current_span(name, context=context_of(request.headers)):
        try:
            return json_response(gateway.replies.reply(body, answer))
        except RequestConflict as error:
            loc = ("body", "request_id")
            entry = problem_entry({"type": "conflict", "loc": loc, "msg": str(error)})
            return json_reply({"detail": [entry]}, 409)
