"""The HTTP gateway: routes, limits, validation errors and the page.

Knows FastAPI. Does not know how a reply is made (`serving.surfaces`) nor which
broker, store or model server is used: they come as `GatewayDependencies`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import astuple
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from serving.clients.oidc import Oidc
from serving.gateway import Gateway, GatewayDependencies
from serving.http import blocked_queries, experiments, rules
from serving.http.api import catalogue, events, operations, recommend, stream, users
from serving.http.api.json import json_reply, problem_entry
from serving.http.auth import Keys
from serving.http.body import RequestBody
from serving.http.capacity import WAIT_SHARE, Capacity
from serving.http.head import HeadAsGet
from serving.http.measured import Measured
from serving.http.paths import DecodedOnce
from serving.http.rates import Rates

PAGE = Path(__file__).parents[1] / "console" / "page"
# A thread that computes keeps the interpreter this long; the event loop, which takes and rejects
# requests, would otherwise wait 5 ms for it each time that it wakes.
_SWITCH_S = 0.0005
MAX_BODY_BYTES = 4 << 20
_ABOUT = """An open streaming recommendation platform: it ingests behaviour, folds features,
serves models and explains every reply. Simulated and replayed behaviour is labelled."""
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(deps: GatewayDependencies) -> FastAPI:
    """The gateway as an ASGI app. Its services start and stop with the app's lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        sys.setswitchinterval(_SWITCH_S)
        gateway = Gateway(deps)
        app.state.gateway = gateway
        await run_in_threadpool(gateway.start)
        yield
        await run_in_threadpool(gateway.stop)

    app = FastAPI(
        title="tidemill",
        version="0.1.0",
        description=_ABOUT,
        lifespan=lifespan,
        # FastAPI's own spans and logs state the path, the query and rejected values, which name
        # users: a trace store does not erase them. The routes open spans without them.
        telemetry={"tracing": False, "logs": False},
    )
    config = deps.config
    deadline_s = sum(astuple(config.deadlines)) / 1e3
    app.state.capacity = Capacity(longest_s=deadline_s * WAIT_SHARE)
    oidc = Oidc(config.oidc) if config.oidc else None
    app.state.keys = Keys(config.api_keys, config.host, oidc, Rates(config.rate_limits))
    stated = (blocked_queries, rules, experiments)
    for routes in (recommend, *stated, events, catalogue, users, operations, stream):
        app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, _validation_reply)
    app.add_middleware(RequestBody, max_bytes=MAX_BODY_BYTES)
    app.add_middleware(Measured)
    if deps.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(deps.config.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    app.add_middleware(HeadAsGet)
    app.add_middleware(DecodedOnce)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _validation_reply(request: Request, error: Exception) -> Response:
    """422 with one entry per problem: the field's path, and the index in a list of events."""
    del request
    assert isinstance(error, RequestValidationError)
    return json_reply({"detail": [problem_entry(problem) for problem in error.errors()]}, 422)
