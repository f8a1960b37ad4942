"""Preference pairs within a slate: candidates with an action against those passed over.

Knows slots, labels and examination. Does not know scores. A candidate counts as passed over
only if it was surely looked at: shown above the chosen one, or directly below it, without any
action. A choice from a slot that few users look at is stronger evidence, so it weighs
1 / examination, clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.ranking.ple.data import RankerExamples, slot_examination

MAX_WEIGHT = 4.0


@dataclass(frozen=True)
class PreferencePairs:
    """P lists: one chosen candidate and those that it is preferred to.

    group, chosen: int64 [P], the group's row and the candidate's column; rejected: bool
    [P, C]; weight: float32 [P], mean 1.
    """

    group: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.group)


def preference_pairs(examples: RankerExamples) -> PreferencePairs:
    """Every candidate with an action that was shown below or directly above a passed-over one."""
    group, chosen = np.nonzero(examples.acted & examples.real)
    passed_over = (examples.real & ~examples.acted)[group]
    looked_at = examples.slot[group] <= examples.slot[group, chosen][:, None] + 1
    rejected = passed_over & looked_at
    some = rejected.any(1)
    group, chosen, rejected = group[some], chosen[some], rejected[some]
    looked = slot_examination(examples)[examples.slot[group, chosen]]
    weight = np.minimum(1 / looked, MAX_WEIGHT).astype(np.float32)
    return PreferencePairs(group, chosen, rejected, weight / max(float(weight.mean()), 1e-6))
