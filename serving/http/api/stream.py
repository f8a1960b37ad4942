"""GET /v1/stream: live messages as server-sent events.

Knows subscribers and the SSE format. Does not know where messages come from
(`serving.console.live`). A comment line every 5 s keeps the connection open. There is no
`id`, since messages are not kept for replay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse

from serving.console.hub import LiveMessage, Subscriber
from serving.gateway import Gateway
from serving.http.api.errors import KEYED
from serving.http.api.gateway_state import GatewayState
from serving.http.auth import needs
from streams.contract.bounds import Id

router = APIRouter(prefix="/v1", tags=["page"])
_KEEPALIVE_S = 5.0


@router.get("/stream", dependencies=[Depends(needs("admin"))], responses=KEYED)
async def stream(
    request: Request,
    gateway: GatewayState,
    user_id: Annotated[Id | None, Query()] = None,
) -> StreamingResponse:
    """Streams live messages: all events of `user_id`, a sample of the other users'."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    lines = _lines(request, gateway, user_id)
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


async def _lines(request: Request, gateway: Gateway, user_id: str | None) -> AsyncIterator[bytes]:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    subscriber = Subscriber(user_id, lambda: loop.call_soon_threadsafe(ready.set))
    gateway.hub.subscribe(subscriber)
    try:
        if user_id is not None:
            await asyncio.to_thread(gateway.watch.begin, user_id)
        yield b": connected\n\n"
        yield _line(LiveMessage("stats", gateway.stats()))
        while not (gateway.stopping.is_set() or await request.is_disconnected()):
            try:
                await asyncio.wait_for(ready.wait(), _KEEPALIVE_S)
            except TimeoutError:
                yield b": beat\n\n"
            ready.clear()
            while subscriber.messages:
                yield _line(subscriber.messages.popleft())
    finally:
        gateway.hub.unsubscribe(subscriber)


def _line(message: LiveMessage) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (message.kind.encode(), orjson.dumps(message.data))
