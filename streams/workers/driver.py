"""What a worker needs of a stream framework: subscriptions, messages, commits.

Knows partitions and messages. Does not know a framework (`streams.workers.faust` is one) nor
what a worker does with messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FetchedMessage:
    """One committed message. It was fetched no later than `fetched_at` (monotonic s)."""

    topic: str
    partition: int
    offset: int
    value: bytes
    headers: Mapping[str, bytes]
    fetched_at: float


class AssignedPartition(Protocol):
    """One partition while it is assigned to this worker."""

    def messages(self) -> AsyncIterator[FetchedMessage]:
        """From the committed offset on, without a gap, in offset order, each once."""

    def mark_processed(self, message: FetchedMessage) -> None:
        """The effect of `message`, and of all before it, is durable: commit past it."""


ConsumePartition = Callable[[AssignedPartition], Awaitable[None]]
"""Consumes a partition until it is cancelled, because the partition was revoked."""


class StreamDriver(Protocol):
    """Reads topics as one member of a consumer group, within one asyncio loop."""

    def subscribe(self, topic: str, consume: ConsumePartition) -> None:
        """Runs `consume` for every assigned partition of `topic`. Call it before `start`."""

    def on_assigned(self, callback: Callable[[], None]) -> None:
        """Calls back after every assignment of partitions. Call it before `start`."""

    async def start(self) -> None: ...

    def lags(self) -> Mapping[str, int]:
        """Per topic, the records of assigned partitions that are not processed yet, as far as
        the last fetches know. Asks nothing of the broker."""

    def failure(self) -> BaseException | None:
        """Why the driver has stopped by itself; None while it runs."""

    async def stop(self, *, leave_group: bool) -> None:
        """Commits and stops. `leave_group`: other members take the partitions at once."""
