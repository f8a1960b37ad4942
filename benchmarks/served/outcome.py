"""The policies' results in one world: clicks and utility per user, compared in pairs.

Knows arrays by name. Does not know policies or worlds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.training.evaluation import paired_bootstrap

Interval = tuple[float, float, float]  # mean, low, high


@dataclass
class Outcome:
    """One world, all seeds. Arrays float64 [U], one list entry a seed.

    clicks, utility: by policy, of users with a history; newcomers: utility of the others.
    cold_items, cold_utility: share of a slate's slots with items without a replayed play, and
    the utility of those slots. stages: utility by stage; figures: single figures by name.
    """

    clicks: dict[str, list[np.ndarray]] = field(default_factory=dict)
    utility: dict[str, list[np.ndarray]] = field(default_factory=dict)
    newcomers: dict[str, list[np.ndarray]] = field(default_factory=dict)
    cold_items: dict[str, list[np.ndarray]] = field(default_factory=dict)
    cold_utility: dict[str, list[np.ndarray]] = field(default_factory=dict)
    stages: dict[str, list[np.ndarray]] = field(default_factory=dict)
    figures: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def difference(self, metric: str, policy: str, over: str) -> Interval:
        """Paired by user."""
        values = getattr(self, metric)
        return paired_bootstrap(_joined(values[policy]) - _joined(values[over]))

    def relative(self, metric: str, policy: str, over: str) -> Interval:
        """The paired difference in percent of the mean of `over`."""
        base = float(_joined(getattr(self, metric)[over]).mean())
        mean, low, high = self.difference(metric, policy, over)
        return 100 * mean / base, 100 * low / base, 100 * high / base

    def share_of_way(self, policy: str, start: str, end: str) -> Interval:
        """(policy - start) / (end - start) in utility, users resampled."""
        base = _joined(self.utility[start])
        whole = _joined(self.utility[end]) - base
        whole = np.where(np.abs(whole) < 1e-12, 1e-12, whole)
        gained = _joined(self.utility[policy]) - base
        return paired_bootstrap(gained / whole, whole)

    def mean(self, metric: str, name: str) -> float:
        return float(_joined(getattr(self, metric)[name]).mean())

    def best(self, policies: tuple[str, ...]) -> str:
        """The policy with the highest mean utility."""
        return max(policies, key=lambda name: self.mean("utility", name))


def record(into: dict[str, list[np.ndarray]], name: str, values: np.ndarray) -> None:
    into.setdefault(name, []).append(values)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)
