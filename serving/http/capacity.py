"""How many requests are answered at once, and which are rejected because they would wait too long.

Knows how soon replies followed each other lately. Does not know requests or stages. Threads beyond what the cores
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
DEADLINE_S = 1.25  # the default deadlines of all stages together
WAIT_SHARE = 0.5  # of the deadline, for a turn and the reply: a longer queue would only age
LONGEST_S = DEADLINE_S * WAIT_SHARE
OVERLOADED_SHARE = 0.4  # of that, once some were rejected and until the queue has run dry
_SMOOTHING = 0.05  # weight of the newest interval in their mean


class Busy(RuntimeError):
    """The request would not be answered in time. `retry_after_s`: whole seconds, at least 1."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"more requests wait than can be answered: retry in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Capacity:
    """Runs calls on threads, at most `running` at once. For one event loop.

    longest_s: from arrival to reply; what would take longer is rejected. All threads share the
    machine, so what a call takes says little: how soon it is answered follows from how many are
    before it and how soon one ends after the other while all threads are busy. A burst may fill the
    queue; one that stays full answers no more requests and makes each older, so it is kept short.
    """

    def __init__(self, running: int = RUNNING, longest_s: float = LONGEST_S) -> None:
        self._running, self._longest_s = running, longest_s
        self._limiter: anyio.CapacityLimiter | None = None  # belongs to the loop that first asks
        self._between_s = 0.0  # from one reply to the next while all threads are busy, mean
        self._ended_s = math.inf  # when the last call ended, if all threads were busy since
        self._overloaded = False
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
            return await anyio.to_thread.run_sync(call, limiter=self._limiter)
        finally:
            self._observe_end(time.perf_counter())
            self.waiting -= 1

    def _refuse_if_late(self) -> None:
        """`waiting` counts those that run, too."""
        if self.waiting < self._running:
            self._overloaded = False
            return
        longest_s = self._longest_s * (OVERLOADED_SHARE if self._overloaded else 1.0)
        late_s = (self.waiting + 1) * self._between_s - longest_s
        if late_s > 0:
            self._overloaded = True
            raise Busy(max(1, math.ceil(late_s)))

    def _observe_end(self, now_s: float) -> None:
        busy = self.waiting > self._running  # and stays so: another call takes the thread
        if busy and self._ended_s < now_s:
            self._between_s += _SMOOTHING * (now_s - self._ended_s - self._between_s)
        self._ended_s = now_s if busy else math.inf
