"""Replies as server-sent events, made on a thread of the capacity's.

Knows the SSE format, threads and a caller that leaves. Does not know what the events say. The
response starts with the first event, so a request that is refused before it gets a status code.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.http.api.json import json_bytes
from serving.http.capacity import Capacity
from serving.state.replies import CallerLeft

EVENTS = "text/event-stream"
DOCUMENTED: dict[str, Any] = {
    EVENTS: {
        "schema": {"type": "string"},
        "example": 'event: item\ndata: {"item_id": "v242", "slot": 0}\n\n'
        'event: done\ndata: {"request_id": "8b6f0f0d", "fallbacks": []}\n\n',
    }
}
"""What OpenAPI says of a streamed reply: `item` for each item as in the whole reply, then `done`
with all else, or `error`: the same and `detail`, where the model failed and fallbacks answered."""

Emit = Callable[[str, bytes], None]
"""Sends an event: its name and its JSON. Raises `CallerLeft`."""
_LOG = logging.getLogger(__name__)
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def wants_events(request: Request) -> bool:
    """Whether the caller asks for server-sent events by name."""
    accepted = request.headers.get("accept", "").lower().split(",")
    return any(each.partition(";")[0].strip() == EVENTS for each in accepted)


async def event_stream(capacity: Capacity, produce: Callable[[Emit], None]) -> Response:
    """The events that `produce` emits, as they are emitted.

    A caller that leaves makes the next `Emit` raise. What `produce` raises after its first event
    becomes the event `error`.

    Raises:
        serving.http.capacity.Busy: as `Capacity.run`.
        Exception: what `produce` raises before its first event.
    """
    loop, left = asyncio.get_running_loop(), threading.Event()
    arrived: asyncio.Queue[bytes | None] = asyncio.Queue()  # None: the end

    def emit(event: str, data: bytes) -> None:
        if left.is_set():
            raise CallerLeft
        loop.call_soon_threadsafe(arrived.put_nowait, _event(event, data))

    async def run() -> None:
        try:
            await capacity.run(partial(produce, emit))
        finally:
            # By the loop, as the events are: it must not overtake them.
            loop.call_soon(arrived.put_nowait, None)

    running = asyncio.create_task(run())
    first = await arrived.get()
    if first is None:
        await running
        return Response(status_code=204)
    running.add_done_callback(_report)
    return _EventStream(_rest(first, arrived, running), left)


class _EventStream(StreamingResponse):
    """Sets `left` when the caller has left, or the last event is sent."""

    def __init__(self, events: AsyncIterator[bytes], left: threading.Event) -> None:
        super().__init__(events, media_type=EVENTS, headers=_HEADERS)
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left.set()


async def _rest(
    first: bytes, arrived: asyncio.Queue[bytes | None], running: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    yield first
    while (event := await arrived.get()) is not None:
        yield event
    error = running.exception() if running.done() else None
    if error is not None:
        yield _event(
            "error", json_bytes({"detail": f"the reply broke off: {type(error).__name__}"})
        )


def _report(running: asyncio.Task[None]) -> None:
    error = None if running.cancelled() else running.exception()
    if error is not None and not isinstance(error, CallerLeft):
        _LOG.error("a streamed reply broke off", exc_info=error)


def _event(event: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.encode(), data)
