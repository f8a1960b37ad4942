"""One thread per topic, between a worker's event loop and its handlers.

Knows threads, queues and sizes. Does not know batches, offsets or retries
(`streams.workers.worker`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic, sleep

from streams.telemetry import name_thread
from streams.workers.driver import FetchedMessage

_MAX_PAUSE_S = 0.1
Messages = list[FetchedMessage]


class TopicThread:
    """The thread that calls one topic's handler, so that no two calls overlap.

    A daemon thread: a handler that hangs cannot keep the process from ending.
    """

    def __init__(
        self,
        topic: str,
        work: Callable[[Messages], None],
        combine_bytes: int = 0,
        low_priority: bool = False,
    ) -> None:
        """`work` gets the messages of one `run`, or with `combine_bytes` those of several that
        are queued, up to this many payload bytes.

        `low_priority`: pauses after each call for as long as it took (at most 0.1 s). When CPU is
        short, that leaves more of it to other topics, and more messages queue to be combined.
        """
        self._work, self._combine_bytes, self._pauses = work, combine_bytes, low_priority
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._held: list[_Call | None] = []  # taken from the queue, not worked on yet
        threading.Thread(target=self._serve, args=(topic,), daemon=True).start()

    def _serve(self, topic: str) -> None:
        name_thread(topic.rpartition(".")[2])
        while calls := self._next_calls():
            started = monotonic()
            # A cancelled call's partition was revoked. It may be assigned again, and then the
            # same messages are queued a second time.
            if awaited := [call for call in calls if not call.done.cancelled()]:
                _work_on(self._work, awaited)
            if self._pauses:
                sleep(min(monotonic() - started, _MAX_PAUSE_S))

    def _next_calls(self) -> list[_Call]:
        """The calls to work on together; [] at the end."""
        first = self._held.pop() if self._held else self._calls.get()
        if first is None:
            return []
        calls, size = [first], first.bytes
        while size < self._combine_bytes and not self._held:
            try:
                call = self._calls.get_nowait()
            except Empty:
                break
            if call is None or size + call.bytes > self._combine_bytes:
                self._held.append(call)
            else:
                calls.append(call)
                size += call.bytes
        return calls

    async def run(self, messages: Messages) -> None:
        """Returns when `work` has returned, and raises what it raised."""
        loop = asyncio.get_running_loop()
        call = _Call(messages, loop, loop.create_future())
        self._calls.put(call)
        await call.done

    def close(self) -> None:
        self._calls.put(None)


@dataclass(frozen=True)
class _Call:
    messages: Messages
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]

    @property
    def bytes(self) -> int:
        return sum(len(message.value) for message in self.messages)


def _work_on(work: Callable[[Messages], None], calls: list[_Call]) -> None:
    error: BaseException | None = None
    try:
        work([message for call in calls for message in call.messages])
    except BaseException as raised:
        error = raised
    for call in calls:
        with suppress(RuntimeError):  # the event loop is closed
            call.loop.call_soon_threadsafe(_resolve, call.done, error)


def _resolve(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
