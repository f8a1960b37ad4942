"""GET /v1/stream: server-sent events, what happens now.

Kinds: event, dead, feature, release, update, stats. A comment line every few seconds
keeps connections open; `id` is not given, since nothing is kept to be sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse

from serving.console.live import Mailbox, Message
from serving.gateway import Gateway, gateway_of
from serving.http.auth import needs

router = APIRouter(prefix="/v1", tags=["page"])
_BEAT_S = 5.0


@router.get("/stream", dependencies=[Depends(needs("admin"))])
async def stream(
    request: Request,
    gateway: Annotated[Gateway, Depends(gateway_of)],
    user_id: Annotated[str | None, Query(max_length=128)] = None,
) -> StreamingResponse:
    """Live events; those of `user_id` all, of others a sample."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    lines = _lines(request, gateway, user_id)
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


async def _lines(request: Request, gateway: Gateway, user_id: str | None) -> AsyncIterator[bytes]:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    mailbox = Mailbox(user_id, lambda: loop.call_soon_threadsafe(ready.set))
    gateway.live.subscribe(mailbox)
    try:
        yield b": connected\n\n"
        yield _line(Message("stats", gateway.stats()))
        while not (gateway.stopping.is_set() or await request.is_disconnected()):
            try:
                await asyncio.wait_for(ready.wait(), _BEAT_S)
            except TimeoutError:
                yield b": beat\n\n"
            ready.clear()
            while mailbox.messages:
                yield _line(mailbox.messages.popleft())
    finally:
        gateway.live.unsubscribe(mailbox)


def _line(message: Message) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (message.kind.encode(), orjson.dumps(message.data))
