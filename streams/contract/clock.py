"""The stack's one clock. Everything that asks for `now` is handed one of these.

Knows nothing of events. Only edges (processes, HTTP, the command line) build a
clock; pure functions take `now_ms` as an argument.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


class Clock(Protocol):
    """Tells the stack's time in milliseconds since the Unix epoch."""

    def now_ms(self) -> int: ...


@dataclass(frozen=True)
class WallClock:
    """The machine's own time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class AcceleratedClock:
    """Runs `rate` times as fast as the wall, from one stated origin.

    Every process of a stack builds it from the same three numbers (settings
    section `clock`), so all of them agree on `now` without talking.
    """

    origin_wall_ms: int
    origin_ms: int
    rate: float

    def now_ms(self) -> int:
        elapsed = time.time_ns() / 1e6 - self.origin_wall_ms
        return int(self.origin_ms + elapsed * self.rate)


@dataclass
class ManualClock:
    """A clock that a test sets by hand. Ships so that users can test their own code."""

    at_ms: int = 0

    def now_ms(self) -> int:
        return self.at_ms

    def advance(self, ms: int) -> None:
        self.at_ms += ms
