"""What one update did to a policy: its distance from the reference, and its reward.

Knows figures and words. Imports no torch: releases and the console read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UpdateReport:
    """Figures over the first and the last tenth of an update's groups.

    kl: the mean distance to the frozen reference at the end, in nats. steps: of the optimiser.
    The reward is the method's own (`models.updates.methods`).
    """

    method: str
    steps: int
    kl: float
    reward_before: float
    reward_after: float

    def in_words(self) -> str:
        return (
            f"{self.method}: KL {self.kl:.4f} to the frozen reference, reward "
            f"{self.reward_before:.4f} -> {self.reward_after:.4f} in {self.steps} steps"
        )


def reports_of(gate: Mapping[str, Any] | None) -> list[UpdateReport]:
    """The reports in a release's record; none in records of before, or without an update."""
    return [UpdateReport(**each) for each in (gate or {}).get("updates", ())]
