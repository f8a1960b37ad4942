"""Counts of the crowd's impressions and actions by phase and arm: rates, latencies, fallbacks.

Knows counts. Does not know the planted truth: the event log gives the same figures, but for the
oracle's, which the crowd adds to each slate.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

BOOTSTRAP_SAMPLES = 1_000  # the interval's ends are then stable to 0.001
NO_RANKER = "none"  # version of a release without a ranker
_SHOWN, _PLAYS, _ORDERS, _BEST = range(4)


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % bootstrap interval over users; n is the denominator."""

    value: float
    low: float
    high: float
    n: int


class SlateGroup(NamedTuple):
    """Slates that are counted together. version: of the live ranker; arm: "" without any."""

    phase: str
    version: str
    arm: str = ""


@dataclass(frozen=True)
class Comparison:
    """Two arms since the first ranker went live, both served at the same time.

    clicks, orders: per item shown. difference: treated - control, in clicks. ceiling: clicks per
    item that the oracle's slates would be expected to get on the same visits of both arms; NaN
    before the first.
    """

    clicks: Mapping[str, Rate]
    orders: Mapping[str, Rate]
    difference: Rate
    ceiling: float


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
    # group -> user -> [shown, plays, orders, expected plays of the oracle]
    _users: dict[SlateGroup, dict[str, np.ndarray]] = field(
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

    def watched(self, group: SlateGroup, user_id: str, counts: Sequence[float]) -> None:
        """One slate of the feed: shown, plays, orders and the oracle's expected plays."""
        with self._lock:
            users = self._users[group]
            users[user_id] = users.get(user_id, np.zeros(4)) + np.asarray(counts, dtype=float)

    def click_rate(self, group: SlateGroup) -> Rate:
        """Plays per film shown."""
        table = self._table(group.__eq__)
        return rate(table[:, _PLAYS], table[:, _SHOWN])

    def order_rate(self, group: SlateGroup) -> Rate:
        """Orders per film shown."""
        table = self._table(group.__eq__)
        return rate(table[:, _ORDERS], table[:, _SHOWN])

    def compare_arms(self, control: str, treated: str) -> Comparison:
        """Both arms over all slates that were served while a ranker was live."""
        tables = {arm: self._released(arm) for arm in (control, treated)}

        def clicked(arm: str) -> np.ndarray:
            return np.asarray(tables[arm][:, [_PLAYS, _SHOWN]])

        both = np.concatenate(list(tables.values())).sum(axis=0)
        return Comparison(
            {arm: rate(table[:, _PLAYS], table[:, _SHOWN]) for arm, table in tables.items()},
            {arm: rate(table[:, _ORDERS], table[:, _SHOWN]) for arm, table in tables.items()},
            rate_difference(clicked(control), clicked(treated)),
            float(both[_BEST] / both[_SHOWN]) if both[_SHOWN] else float("nan"),
        )

    def latencies(self) -> dict[str, Latency]:
        with self._lock:
            return {
                surface: Latency(len(ms), *(float(p) for p in np.percentile(ms, [50, 99])))
                for surface, ms in sorted(self._latency_ms.items())
            }

    def _released(self, arm: str) -> np.ndarray:
        return self._table(lambda group: group.arm == arm and group.version != NO_RANKER)

    def _table(self, match: Callable[[SlateGroup], bool]) -> np.ndarray:
        """float64 [users, 4]: the counts of the matching groups, one row per user."""
        total: dict[str, np.ndarray] = {}
        with self._lock:
            for group, users in self._users.items():
                for user_id, counts in users.items() if match(group) else ():
                    total[user_id] = total.get(user_id, 0.0) + counts
        return np.asarray(list(total.values()), dtype=float).reshape(-1, 4)


def rate(actions: np.ndarray, shown: np.ndarray, seed: int = 0) -> Rate:
    """Ratio of sums with a bootstrap interval over users (rows). NaN if nothing was shown."""
    if not shown.sum():
        return _NO_RATE
    low, high = np.percentile(_drawn_rates(actions, shown, seed), [2.5, 97.5])
    return Rate(float(actions.sum() / shown.sum()), float(low), float(high), int(shown.sum()))


def rate_difference(control: np.ndarray, treated: np.ndarray, seed: int = 0) -> Rate:
    """Rate of `treated` minus that of `control`, float [users, (actions, shown)] each.

    The groups hold different users, so each is drawn on its own. `n` is the sum of shown.
    """
    if not (control[:, 1].sum() and treated[:, 1].sum()):
        return _NO_RATE
    rates = [float(rows[:, 0].sum() / rows[:, 1].sum()) for rows in (control, treated)]
    drawn = [
        _drawn_rates(rows[:, 0], rows[:, 1], seed + place)
        for place, rows in enumerate((control, treated))
    ]
    low, high = np.percentile(drawn[1] - drawn[0], [2.5, 97.5])
    shown = int(control[:, 1].sum() + treated[:, 1].sum())
    return Rate(rates[1] - rates[0], float(low), float(high), shown)


_NO_RATE = Rate(float("nan"), float("nan"), float("nan"), 0)


def _drawn_rates(actions: np.ndarray, shown: np.ndarray, seed: int) -> np.ndarray:
    """float64 [BOOTSTRAP_SAMPLES]: the ratio of sums over users drawn with replacement."""
    picks = np.random.default_rng(seed).poisson(1.0, (BOOTSTRAP_SAMPLES, len(shown)))
    return np.asarray((picks @ actions) / np.maximum(picks @ shown, 1.0))
