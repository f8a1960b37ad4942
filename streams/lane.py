"""What stands between a worker's event loop and its handlers: a thread each, and a line.

Knows threads, queues and sizes. Does not know batches, offsets or retries
(`streams.worker`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any

from streams.telemetry import name_thread

_LONGEST_REST_S = 0.1
_LINE_MESSAGES = 64  # of one partition, waiting to be combined


class Lane:
    """One thread that calls one topic's handler, so that it is never called twice at once.

    A daemon: a handler that hangs cannot keep the process from ending. One that `rests` pauses
    after a call for as long as it took (0.1 s at most): where time is short it leaves some to
    the lanes that do not, and more waits for it to be combined.
    """

    def __init__(self, topic: str, *, rests: bool = False) -> None:
        self._rests = rests
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._work, args=(topic,), daemon=True).start()

    def _work(self, topic: str) -> None:
        name_thread(topic.rpartition(".")[2])
        while (call := self._calls.get()) is not None:
            began = monotonic()
            call()
            if self._rests:
                sleep(min(monotonic() - began, _LONGEST_REST_S))

    async def run(self, work: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def call() -> None:
            error: BaseException | None = None
            try:
                work()
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(_settle, done, error)

        self._calls.put(call)
        await done

    def close(self) -> None:
        self._calls.put(None)


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


class Line:
    """One partition's messages in their order, as many at a time as wait and may be combined.

    Make it within a running event loop; `close` ends it.
    """

    def __init__(self, events: AsyncIterator[Any], combine_bytes: int, pace_s: float = 0.0) -> None:
        """Faust's events; at most `combine_bytes` of values are given out together, and no
        sooner than `pace_s` after those before."""
        self._bytes, self._pace_s, self._next = combine_bytes, pace_s, 0.0
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(_LINE_MESSAGES if combine_bytes else 1)
        self._held: list[Any] = []
        self._filling = asyncio.create_task(self._fill(events))

    async def _fill(self, events: AsyncIterator[Any]) -> None:
        end: Exception | None = None
        try:
            async for event in events:
                await self._waiting.put(event.message)
        except Exception as error:
            end = error
        await self._waiting.put(end)

    async def next(self) -> list[Any]:
        """At least one message; [] when the stream has ended. Raises what ended it.

        Nothing is taken out of the line until the pace allows it, so that whoever is cut off
        while it waits can ask whether the line `holds` anything.
        """
        await asyncio.sleep(max(0.0, self._next - monotonic()))
        first = self._held.pop() if self._held else await self._waiting.get()
        if isinstance(first, Exception):
            raise first
        if first is None:
            return []
        self._next = monotonic() + self._pace_s
        messages, size = [first], len(first.value)
        while not self._waiting.empty() and not self._held:
            message = self._waiting.get_nowait()
            if message is None or isinstance(message, Exception):
                self._held.append(message)
                break
            size += len(message.value)
            (messages if size <= self._bytes else self._held).append(message)
        return messages

    @property
    def holds(self) -> bool:
        """Whether messages were taken from the stream that nobody has been given."""
        return bool(self._held) or not self._waiting.empty()

    def close(self) -> None:
        self._filling.cancel()
