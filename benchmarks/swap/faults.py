"""One fault at a time under load: what callers saw, and when the model served again.

Knows parts, signals and replies. Does not know how a part is started.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

from benchmarks.swap.load import Reply, SteadyLoad, failed, with_fallback
from benchmarks.swap.ranker_stack import RankerStack, await_true

PARTS = ("stub", "triton", "store", "broker", "gateway")
SIGNALS = {"kill -9": signal.SIGKILL, "kill -STOP": signal.SIGSTOP}
CLEAN_S = 5.0  # of replies without a fallback, after which the part counts as back


@dataclass(frozen=True)
class Outcome:
    """back_s: from the fault to the first of `CLEAN_S` of feeds in which no stage fell back, with
    the part's process running again; replies: those sent meanwhile."""

    part: str
    back_s: float
    replies: list[Reply]

    @property
    def failed(self) -> int:
        return failed(self.replies)

    @property
    def fallbacks(self) -> int:
        return with_fallback(self.replies)


def cold_load(stack: RankerStack, load: SteadyLoad, part: str) -> Outcome:
    """An orderly restart, measured like a fault from when the old process has ended."""
    old = stack.pid(part)
    if part == "stub":
        began = time.monotonic()
        stack.restart(part)
    else:
        stack.restart(part)
        began = time.monotonic()
    return _await_back(stack, load, part, old, began)


def strike(stack: RankerStack, load: SteadyLoad, part: str, number: signal.Signals) -> Outcome:
    """Sends the signal and waits until all is as before."""
    began = time.monotonic()
    old = stack.signal(part, number)
    return _await_back(stack, load, part, old, began)


def _await_back(
    stack: RankerStack, load: SteadyLoad, part: str, old: int | None, began: float
) -> Outcome:
    running_s: list[float] = []

    def back() -> bool:
        if stack.pid(part) in (None, old):
            running_s.clear()
            return False
        if not running_s:
            running_s.append(time.monotonic())
        since = max(running_s[0], _last_unclean(load, began))
        newest = load.between(since, time.monotonic())
        return len(newest) > 0 and time.monotonic() - since > CLEAN_S

    await_true(back, f"{part} back and no fallback for {CLEAN_S:g} s")
    back_s = max(running_s[0], _last_unclean(load, began)) - began
    return Outcome(part, back_s, load.between(began, began + back_s + 1.0))


def _last_unclean(load: SteadyLoad, since_s: float) -> float:
    """When the last reply with a fallback, or none, had been sent; `since_s` without one."""
    sent = [r.sent_s for r in load.between(since_s, time.monotonic()) if not r.clean]
    return max(sent, default=since_s)
