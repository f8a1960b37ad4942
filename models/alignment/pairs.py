"""Preferences within a slate: what was acted on, against what was seen and passed over.

Knows slots, labels and examination. Does not know scores. A candidate counts as passed
over only where it was surely looked at: shown above the chosen one, or right beside it,
without any action. A chosen one from a slot that few look at says more than one from
the top, so it weighs 1 / examination, clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.ranking.ple.data import Examples, examination

MAX_WEIGHT = 4.0


@dataclass(frozen=True)
class Preferences:
    """P lists: one chosen candidate and the ones it is preferred to.

    group, chosen: int64 [P], the group's row and the candidate's place; rejected: bool
    [P, C]; weight: float32 [P], mean 1.
    """

    group: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.group)


def preferences(examples: Examples) -> Preferences:
    """Every acted-on candidate that stood below or beside one that was passed over."""
    group, chosen = np.nonzero(examples.acted & examples.real)
    passed_over = (examples.real & ~examples.acted)[group]
    looked_at = examples.slot[group] <= examples.slot[group, chosen][:, None] + 1
    rejected = passed_over & looked_at
    some = rejected.any(1)
    group, chosen, rejected = group[some], chosen[some], rejected[some]
    looked = examination(examples)[examples.slot[group, chosen]]
    weight = np.minimum(1 / looked, MAX_WEIGHT).astype(np.float32)
    return Preferences(group, chosen, rejected, weight / max(float(weight.mean()), 1e-6))
