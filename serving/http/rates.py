"""How often one caller may call, by scope: 429 with `Retry-After` beyond it.

Knows rates and callers. The window moves (`limits.strategies.MovingWindowRateLimiter`), and each
gateway process counts by itself: with N of them a caller may reach N times the rate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from fastapi import HTTPException
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter


class Rates:
    """rates: scope -> "100/second", "5000 per minute". Without one a scope is not limited."""

    def __init__(self, rates: Mapping[str, str]) -> None:
        self._rates: dict[str, RateLimitItem] = {
            scope: parse(rate) for scope, rate in rates.items()
        }
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def count(self, scope: str, caller: str) -> None:
        """Counts one call.

        Raises:
            HTTPException: 429, the caller is over its rate; `Retry-After` in s.
        """
        rate = self._rates.get(scope)
        if rate is None or self._limiter.hit(rate, scope, caller):
            return
        resets = self._limiter.get_window_stats(rate, scope, caller).reset_time
        wait_s = max(1, round(resets - time.time()))
        raise HTTPException(
            429,
            f"over the rate of {rate} for {scope!r}: try again in {wait_s} s",
            {"Retry-After": str(wait_s)},
        )
