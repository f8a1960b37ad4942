"""The HTTP gateway: routes, limits, errors that name the field, and the page.

Knows FastAPI. Does not know how an answer is made (`serving.pipeline.surfaces`), nor which
broker, store or model server there is: they come as `Dependencies`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.gateway import Dependencies, Gateway
from serving.http.api import catalogue, events, operations, recommend, stream, users
from serving.http.api.json import json_reply

__all__ = ["Dependencies", "create_app"]

PAGE = Path(__file__).parents[1] / "console" / "page"
MAX_BODY_BYTES = 4 << 20
_ABOUT = """An open streaming recommendation platform: behaviour in, features folded, models
asked, answers explained. Simulated and replayed behaviour is labelled as such."""
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(deps: Dependencies) -> FastAPI:
    """The gateway as an ASGI app. Its parts start and stop with the app's lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gateway = Gateway(deps)
        app.state.gateway = gateway
        await run_in_threadpool(gateway.start)
        yield
        await run_in_threadpool(gateway.stop)

    app = FastAPI(title="tidemill", version="0.1.0", description=_ABOUT, lifespan=lifespan)
    for routes in (recommend, events, catalogue, users, operations, stream):
        app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, _name_the_field)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=_PAGE_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _name_the_field(request: Request, error: Exception) -> Response:
    """422 with one entry per problem: the field's path, and the index in a list of events."""
    del request
    assert isinstance(error, RequestValidationError)
    return json_reply({"detail": [_problem(problem) for problem in error.errors()]}, 422)


def _problem(problem: dict[str, Any]) -> dict[str, Any]:
    place = list(problem["loc"])
    path = place[1:] if place and place[0] in ("body", "query", "path") else place
    index = path[0] if path and isinstance(path[0], int) else None
    field = ".".join(str(part) for part in (path[1:] if index is not None else path)) or "body"
    told = {"field": field, "loc": place, "msg": problem["msg"], "type": problem["type"]}
    return told if index is None else {"index": index, **told}


class BodyLimit:
    """Refuses a body above `max_bytes` with 413, whether or not its length was announced."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._announced(scope) > self._max_bytes:
            refusal = json_reply({"detail": self._words()}, 413, {"Connection": "close"})
            await refusal(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise HTTPException(413, self._words())
            return message

        await self._app(scope, counted, send)

    def _announced(self, scope: Scope) -> int:
        text = dict(scope["headers"]).get(b"content-length", b"0")
        return int(text) if text.isdigit() else 0

    def _words(self) -> str:
        return f"the body is larger than {self._max_bytes >> 20} MiB: send it in parts"
