"""Preference lists within a slate: better outcomes against worse ones that were looked at.

Knows slots, grades of outcome and examination. Does not know scores. A candidate counts as
passed over only if it was surely looked at: shown above the chosen one, or directly below it,
with a lower grade. A choice from a slot that few users look at is stronger evidence, so it
weighs 1 / examination, clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.ranking.ple.data import RankerExamples, relative_examination

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
    """The lists of the feed's slates: any action against none."""
    return listwise_pairs(examples.acted.astype(np.int64), examples.real, examples.slot)


def listwise_pairs(grade: np.ndarray, real: np.ndarray, slot: np.ndarray) -> PreferencePairs:
    """Every candidate with an outcome, against those of a lower grade that were looked at.

    grade: int [G, C], 0: passed over, and the higher the better (1: clicked, 2: ordered);
    real: bool [G, C], not padding; slot: int [G, C].
    """
    group, chosen = np.nonzero((grade > 0) & real)
    lower = real[group] & (grade[group] < grade[group, chosen][:, None])
    looked_at = slot[group] <= slot[group, chosen][:, None] + 1
    rejected = lower & looked_at
    some = rejected.any(1)
    group, chosen, rejected = group[some], chosen[some], rejected[some]
    looked = relative_examination(grade > 0, real, slot)[slot[group, chosen]]
    weight = np.minimum(1 / looked, MAX_WEIGHT).astype(np.float32)
    return PreferencePairs(group, chosen, rejected, weight / max(float(weight.mean()), 1e-6))
