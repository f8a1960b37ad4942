"""The stack's clock, wall or accelerated.

Knows time in milliseconds. Does not know events. Only edges (processes, HTTP, the command line)
create a clock; pure functions take `now_ms` as an argument.
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
    """The stack's time in milliseconds since 1970."""

    def now_ms(self) -> int: ...


@dataclass(frozen=True)
class WallClock:
    """The machine's time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class AcceleratedClock:
    """Runs `rate` times as fast as the wall clock, from a common origin.

    All processes of a stack create it from the same three numbers (settings section `clock`) and
    so agree on `now` without communication.
    """

    origin_wall_ms: int
    origin_ms: int
    rate: float

    def now_ms(self) -> int:
        elapsed = time.time_ns() / 1e6 - self.origin_wall_ms
        return int(self.origin_ms + elapsed * self.rate)


@dataclass
class ManualClock:
    """A clock that is set by hand, for tests."""

    at_ms: int = 0

    def now_ms(self) -> int:
        return self.at_ms

    def advance(self, ms: int) -> None:
        self.at_ms += ms
