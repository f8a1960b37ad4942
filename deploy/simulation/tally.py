"""Counts of the crowd's impressions and actions by phase: rates, latencies, fallbacks.

Knows counts. Does not know the planted truth: the event log gives the same figures.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BOOTSTRAP_SAMPLES = 1_000  # the interval's ends are then stable to 0.001


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % bootstrap interval over users; n is the denominator."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Latency:
    count: int
    p50_ms: float
    p99_ms: float


@dataclass
class Tally:
    """Thread-safe: the crowd's thread writes while another one reads."""

    phase: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _latency_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    fallbacks: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    returns: Counter[bool] = field(default_factory=Counter)
    # (phase, ranker version) -> user -> [shown, plays, orders]
    _users: dict[tuple[str, str], dict[str, np.ndarray]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def answered(self, reply: Mapping[str, Any], took_ms: float) -> None:
        with self._lock:
            self._latency_ms[str(reply["surface"])].append(took_ms)
            for lost in reply["fallbacks"]:
                self.fallbacks[f"{reply['surface']}: {lost['stage']}"] += 1

    def failed(self, surface: str) -> None:
        with self._lock:
            self.failures[surface] += 1

    def called_back(self, came: bool) -> None:
        with self._lock:
            self.returns[came] += 1

    def watched(self, phase: str, version: str, user_id: str, counts: Sequence[int]) -> None:
        """One slate of the feed: shown, plays and orders."""
        with self._lock:
            users = self._users[phase, version]
            users[user_id] = users.get(user_id, np.zeros(3)) + np.asarray(counts, dtype=float)

    def slates_of(self, phase: str, version: str) -> int:
        """Films shown so far."""
        with self._lock:
            return int(sum(row[0] for row in self._users[phase, version].values()))

    def click_rate(self, phase: str, version: str) -> Rate:
        """Plays per film shown."""
        return self._rate(phase, version, 1)

    def order_rate(self, phase: str, version: str) -> Rate:
        """Orders per film shown."""
        return self._rate(phase, version, 2)

    def latencies(self) -> dict[str, Latency]:
        with self._lock:
            return {
                surface: Latency(len(ms), *(float(p) for p in np.percentile(ms, [50, 99])))
                for surface, ms in sorted(self._latency_ms.items())
            }

    def _rate(self, phase: str, version: str, column: int) -> Rate:
        with self._lock:
            rows = list(self._users[phase, version].values())
        table = np.asarray(rows, dtype=float).reshape(-1, 3)
        return rate(table[:, column], table[:, 0])


def rate(actions: np.ndarray, shown: np.ndarray, seed: int = 0) -> Rate:
    """Ratio of sums with a bootstrap interval over users (rows). NaN if nothing was shown."""
    if not shown.sum():
        return Rate(float("nan"), float("nan"), float("nan"), 0)
    picks = np.random.default_rng(seed).poisson(1.0, (BOOTSTRAP_SAMPLES, len(shown)))
    drawn = (picks @ actions) / np.maximum(picks @ shown, 1.0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Rate(float(actions.sum() / shown.sum()), float(low), float(high), int(shown.sum()))
