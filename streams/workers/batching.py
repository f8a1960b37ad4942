"""Batching: one partition's messages, buffered and combined before a handler gets them.

Knows sizes, order and time. Does not know offsets, retries or handlers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic

from streams.workers.driver import FetchedMessage

_BUFFERED_MESSAGES = 64  # of one partition, if they may be combined
_LAGGING_BYTES = 1_000_000  # A batch this large means that the partition lags.
_LAG_WAIT_FACTOR = 2.0  # a lagging partition waits at most so many times the last batch's duration
_CHECK_S = 0.02
# Stop waiting after 0.5 s of silence: a producer fast enough to cause lag is never silent so long.
_SILENCE_S = 0.5


@dataclass(frozen=True)
class BatchingPolicy:
    """How many of a partition's messages form a batch, and how often.

    `combine_bytes`: queued messages are combined up to this many payload bytes; 0: one message
    per batch. `min_interval_s`: batches start at least this far apart, for handlers whose cost
    is per batch and whose results can wait.

    `max_lag_wait_s`: after a large batch, the partition lags. The next one starts when
    `combine_bytes` are queued, or after twice the duration of the last one, at most after this
    long, or when no message arrives any more. Larger batches share the cost of a row or a file
    among more events. The wait is in proportion because a fixed one would bring about another
    large batch, and so sustain itself.

    `across_partitions`: queued batches of several partitions are handled as one, for handlers
    that tell them apart by row.
    """

    combine_bytes: int = 0
    min_interval_s: float = 0.0
    max_lag_wait_s: float = 0.0
    across_partitions: bool = False


class PartitionBuffer:
    """Buffers one partition's messages and returns them in batches, in order.

    Create it within a running event loop; `close` ends it.
    """

    def __init__(self, messages: AsyncIterator[FetchedMessage], policy: BatchingPolicy) -> None:
        self._policy, self._started, self._lags = policy, float("-inf"), False
        size = _BUFFERED_MESSAGES if policy.combine_bytes else 1
        # Ends with None, or with the error that ended the messages.
        self._queue: asyncio.Queue[FetchedMessage | Exception | None] = asyncio.Queue(size)
        self._queued_bytes = 0
        self._held: list[FetchedMessage | Exception | None] = []  # the first of the next batch
        self._filling = asyncio.create_task(self._fill(messages))

    async def _fill(self, messages: AsyncIterator[FetchedMessage]) -> None:
        end: Exception | None = None
        try:
            async for message in messages:
                await self._queue.put(message)
                self._queued_bytes += len(message.value)
        except Exception as error:
            end = error
        await self._queue.put(end)

    async def next_batch(self) -> list[FetchedMessage]:
        """At least one message; [] at the end of the messages. Raises the error that ended them."""
        took_s = monotonic() - self._started
        await asyncio.sleep(max(0.0, self._policy.min_interval_s - took_s))
        if self._lags:
            limit_s = min(_LAG_WAIT_FACTOR * took_s, self._policy.max_lag_wait_s)
            await self._wait_for_more(monotonic() + limit_s)
        first = self._held.pop() if self._held else await self._queue.get()
        if isinstance(first, Exception):
            raise first
        if first is None:
            return []
        self._started = monotonic()
        batch = self._combine(first)
        size = sum(len(message.value) for message in batch)
        self._queued_bytes -= size
        self._lags = size >= _LAGGING_BYTES
        return batch

    def _combine(self, first: FetchedMessage) -> list[FetchedMessage]:
        """`first` and the queued messages behind it that fit in one batch."""
        batch, size = [first], len(first.value)
        while not self._queue.empty() and not self._held:
            message = self._queue.get_nowait()
            if message is None or isinstance(message, Exception):
                self._held.append(message)
                break
            size += len(message.value)
            (batch if size <= self._policy.combine_bytes else self._held).append(message)
        return batch

    async def _wait_for_more(self, until: float) -> None:
        """Until a full batch is queued, no message arrives, or the time `until` (monotonic s)."""
        grew, had = monotonic(), self._queued_bytes
        while (now := monotonic()) < until and not self._queue.full():
            if self._queued_bytes >= self._policy.combine_bytes or now - grew > _SILENCE_S:
                return
            await asyncio.sleep(_CHECK_S)
            if self._queued_bytes > had:
                grew, had = monotonic(), self._queued_bytes

    def close(self) -> None:
        self._filling.cancel()
