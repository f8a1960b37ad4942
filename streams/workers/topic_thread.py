"""What stands between a worker's event loop and its handlers: a thread each, and a line.

Knows threads, queues, sizes and rounds. Does not know batches, offsets or retries
(`streams.workers.worker`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any

from streams.telemetry import name_thread

_LONGEST_REST_S = 0.1
_LINE_MESSAGES = 64  # of one partition, waiting to be combined
_LARGE_BYTES = 1_000_000  # who is given so much at once has fallen behind
_PATIENCE = 2.0  # how many times as long as a large delivery took it waits for more
_LOOK_S = 0.02
_DRY_S = 0.5  # without a message: who writes as much as to leave somebody behind writes more often


@dataclass(frozen=True)
class Rounds:
    """How much of a partition is handed over at once, and how often.

    Messages that have queued are handed over as one delivery of at most `combine_bytes`
    payload bytes (0: each alone). Deliveries begin at least `pace_s` apart, for handlers
    whose cost is by the delivery and who are in no haste. A partition that has fallen behind
    (its last delivery was large) waits until `combine_bytes` have queued, or twice as long as
    that delivery took, `behind_s` at most, while messages come: what is late already is done
    in fewer, larger rounds, in which more events share what a row or a file costs. In
    proportion, because a fixed wait would bring another large delivery, and a moment's delay
    would stay for good.
    """

    combine_bytes: int = 0
    pace_s: float = 0.0
    behind_s: float = 0.0
    across: bool = False  # partitions: what waits of several is one delivery, for handlers that can


class Lane:
    """One thread that calls one topic's handler, so that it is never called twice at once.

    A daemon: a handler that hangs cannot keep the process from ending. One that `rests` pauses
    after a call for as long as it took (0.1 s at most): where time is short it leaves some to
    the lanes that do not, and more waits for it to be combined.
    """

    def __init__(
        self,
        topic: str,
        work: Callable[[list[Any]], None],
        most_bytes: int = 0,
        rests: bool = False,
    ) -> None:
        """`work` gets the messages of one `run`; with `most_bytes` those of all that wait,
        while their values take no more together."""
        self._work, self._most_bytes, self._rests = work, most_bytes, rests
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._left: list[_Call | None] = []  # taken from the queue, not worked on yet
        threading.Thread(target=self._serve, args=(topic,), daemon=True).start()

    def _serve(self, topic: str) -> None:
        name_thread(topic.rpartition(".")[2])
        while calls := self._next():
            began = monotonic()
            # One that nobody waits for is left: its partition has moved, and may have come
            # back, so that the same messages wait in line again.
            if wanted := [call for call in calls if not call.done.cancelled()]:
                _do(self._work, wanted)
            if self._rests:
                sleep(min(monotonic() - began, _LONGEST_REST_S))

    def _next(self) -> list[_Call]:
        """What to work on together; [] at the end."""
        first = self._left.pop() if self._left else self._calls.get()
        if first is None:
            return []
        calls, size = [first], first.bytes
        while size < self._most_bytes and not self._left:
            try:
                call = self._calls.get_nowait()
            except Empty:
                break
            if call is None or size + call.bytes > self._most_bytes:
                self._left.append(call)
            else:
                calls.append(call)
                size += call.bytes
        return calls

    async def run(self, messages: list[Any]) -> None:
        """Returns when they have been worked on, and raises what that raised."""
        loop = asyncio.get_running_loop()
        call = _Call(messages, loop, loop.create_future())
        self._calls.put(call)
        await call.done

    def close(self) -> None:
        self._calls.put(None)


@dataclass(frozen=True)
class _Call:
    messages: list[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]

    @property
    def bytes(self) -> int:
        return sum(len(message.value) for message in self.messages)


def _do(work: Callable[[list[Any]], None], calls: list[_Call]) -> None:
    error: BaseException | None = None
    try:
        work([message for call in calls for message in call.messages])
    except BaseException as raised:
        error = raised
    for call in calls:
        with suppress(RuntimeError):  # the loop has ended meanwhile
            call.loop.call_soon_threadsafe(_settle, call.done, error)


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

    def __init__(self, messages: AsyncIterator[Any], rounds: Rounds) -> None:
        self._rounds, self._began, self._behind = rounds, float("-inf"), False
        most = _LINE_MESSAGES if rounds.combine_bytes else 1
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(most)
        self._bytes = 0  # that wait
        self._held: list[Any] = []
        self._filling = asyncio.create_task(self._fill(messages))

    async def _fill(self, messages: AsyncIterator[Any]) -> None:
        end: Exception | None = None
        try:
            async for message in messages:
                await self._waiting.put(message)
                self._bytes += len(message.value)
        except Exception as error:
            end = error
        await self._waiting.put(end)

    async def next(self) -> list[Any]:
        """At least one message; [] when the stream has ended. Raises what ended it."""
        took_s = monotonic() - self._began
        await asyncio.sleep(max(0.0, self._rounds.pace_s - took_s))
        if self._behind:
            await self._gather(monotonic() + min(_PATIENCE * took_s, self._rounds.behind_s))
        first = self._held.pop() if self._held else await self._waiting.get()
        if isinstance(first, Exception):
            raise first
        if first is None:
            return []
        self._began = monotonic()
        messages, size = [first], len(first.value)
        while not self._waiting.empty() and not self._held:
            message = self._waiting.get_nowait()
            if message is None or isinstance(message, Exception):
                self._held.append(message)
                break
            size += len(message.value)
            (messages if size <= self._rounds.combine_bytes else self._held).append(message)
        given = sum(len(message.value) for message in messages)
        self._bytes -= given
        self._behind = given >= _LARGE_BYTES
        return messages

    async def _gather(self, until: float) -> None:
        """Until the line has what one delivery takes, nothing comes any more, or it is time
        (monotonic s)."""
        came, had = monotonic(), self._bytes
        while (now := monotonic()) < until and not self._waiting.full():
            if self._bytes >= self._rounds.combine_bytes or now - came > _DRY_S:
                return
            await asyncio.sleep(_LOOK_S)
            if self._bytes > had:
                came, had = monotonic(), self._bytes

    def close(self) -> None:
        self._filling.cancel()
