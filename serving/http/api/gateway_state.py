"""The running gateway as a route's dependency, and what routes send through it.

Knows where `serving.http.app` keeps the gateway, and the status of a failed send. Does not know
routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

from fastapi import Depends, HTTPException, Request

from serving.gateway import Gateway
from streams.bus.contract import BusError, MessagesRejected, Outgoing


async def gateway_of(request: Request) -> Gateway:
    """The running gateway behind a request. Async: FastAPI runs other dependencies on threads."""
    return cast(Gateway, request.app.state.gateway)


def send(gateway: Gateway, messages: Sequence[Outgoing]) -> None:
    """Sends the messages.

    Raises:
        HTTPException: 413, the broker rejects a message; 503, it does not answer now.
    """
    try:
        gateway.outbox.send(messages)
    except MessagesRejected as error:
        raise HTTPException(413, str(error)) from error
    except BusError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error


GatewayState = Annotated[Gateway, Depends(gateway_of)]
