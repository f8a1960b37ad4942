"""Measures HTTP requests: how long each took, and how many were not answered.

Knows ASGI messages, routes and status codes. Does not know what a route does. A route is named by
its template, so no label holds an id.
"""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OTHER = "other"  # no route, or one of the page's files


class Measured:
    """Calls `Metrics.observe_http` for each request. Stands around `RequestBody`, whose
    rejections count too, and inside what copies the scope, which would hide the route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500  # without an answer

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            seconds = time.perf_counter() - started
            metrics = scope["app"].state.gateway.metrics
            metrics.observe_http(scope["method"], _route(scope), status, seconds)


def _route(scope: Scope) -> str:
    """The route's template; a body that is too large is rejected before its route is known."""
    return str(getattr(scope.get("route"), "path", _OTHER))
