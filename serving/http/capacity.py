"""How many requests are answered at once, and which are rejected because they would wait too long.

Knows how long replies took lately. Does not know requests or stages. Threads beyond what the cores
can run make every reply later; so the others wait here, and one whose turn would come after the
deadline is told at once when to ask again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")
RUNNING = 16  # at once; most of them wait for the store or the model server
LONGEST_S = 1.25  # from arrival to reply: the default deadlines of all stages together
_SMOOTHING = 0.05  # weight of the newest reply's seconds in their mean


class Busy(RuntimeError):
    """The request would not be answered in time. `retry_after_s`: whole seconds, at least 1."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"more requests wait than can be answered: retry in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Capacity:
    """Runs calls on threads, at most `running` at once. For one event loop."""

    def __init__(self, running: int = RUNNING, longest_s: float = LONGEST_S) -> None:
        self._running, self._longest_s = running, longest_s
        self._limiter: anyio.CapacityLimiter | None = None  # belongs to the loop that first asks
        self._mean_s = 0.0
        self.waiting = 0

    async def run(self, call: Callable[[], T]) -> T:
        """The call's result.

        Raises:
            Busy: with what waits and runs already, it would end later than `longest_s`.
        """
        self._refuse_if_late()
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._running)
        self.waiting += 1
        try:
            return await anyio.to_thread.run_sync(self._timed, call, limiter=self._limiter)
        finally:
            self.waiting -= 1

    def _refuse_if_late(self) -> None:
        """`waiting` counts those that run, too: with all threads busy, a turn comes after them."""
        turns = self.waiting // self._running
        late_s = (turns + 1) * self._mean_s - self._longest_s
        if turns and late_s > 0:
            raise Busy(max(1, math.ceil(late_s)))

    def _timed(self, call: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return call()
        finally:
            took_s = time.perf_counter() - started
            self._mean_s += _SMOOTHING * (took_s - self._mean_s)
