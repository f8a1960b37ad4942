"""The running gateway as a route's dependency.

Knows where `serving.http.app` keeps the gateway. Does not know routes.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from serving.gateway import Gateway


async def gateway_of(request: Request) -> Gateway:
    """The running gateway behind a request. Async: FastAPI runs other dependencies on threads."""
    return cast(Gateway, request.app.state.gateway)


GatewayState = Annotated[Gateway, Depends(gateway_of)]
