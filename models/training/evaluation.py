"""Ranking metrics: GAUC, MRR, recall@k, and paired bootstrap intervals over users.

Knows scores, labels and users as arrays. Does not know models or data sets. Ties share
their average rank, so a constant score has an AUC of 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.recipe import Evaluation


@dataclass(frozen=True)
class PerUser:
    """One value per user for whom the metric is defined, users ascending.

    users: the users' labels [U]; value: float64 [U]; weight: float64 [U].
    """

    users: np.ndarray
    value: np.ndarray
    weight: np.ndarray

    @property
    def mean(self) -> float:
        """Weighted mean; NaN without users."""
        return float(np.average(self.value, weights=self.weight)) if len(self.value) else np.nan


def average_ranks(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Ascending ranks from 1 within each group, ties at their average; float64 [N]."""
    order = np.lexsort((scores, groups))
    sorted_groups, sorted_scores = groups[order], scores[order]
    n = len(order)
    if n == 0:
        return np.zeros(0)
    new_group = np.r_[True, sorted_groups[1:] != sorted_groups[:-1]]
    new_tie = new_group | np.r_[True, sorted_scores[1:] != sorted_scores[:-1]]
    position = np.arange(n)
    group_start = np.maximum.accumulate(np.where(new_group, position, 0))
    tie_start = np.flatnonzero(new_tie)
    tie_mean = (tie_start + np.r_[tie_start[1:], n] - 1) / 2
    ranks = np.empty(n)
    ranks[order] = tie_mean[np.cumsum(new_tie) - 1] - group_start + 1
    return ranks


def auc_per_user(users: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> PerUser:
    """AUC of each user with both a positive and a negative, weighted by positives.

    users: any dtype [N]; scores: float [N], NaN ranks below everything; labels: bool [N].
    """
    names, codes = np.unique(users, return_inverse=True)
    finite = np.where(np.isnan(scores), -np.inf, scores)
    ranks = average_ranks(codes, finite)
    positive = labels.astype(bool)
    count = len(names)
    n_pos = np.bincount(codes, weights=positive, minlength=count)
    n_neg = np.bincount(codes, weights=~positive, minlength=count)
    rank_sum = np.bincount(codes, weights=ranks * positive, minlength=count)
    both = (n_pos > 0) & (n_neg > 0)
    wins = rank_sum[both] - n_pos[both] * (n_pos[both] + 1) / 2
    return PerUser(names[both], wins / (n_pos[both] * n_neg[both]), n_pos[both])


def gauc(users: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> float:
    """Group AUC: the mean of users' AUCs, weighted by their positives; NaN without any."""
    return auc_per_user(users, scores, labels).mean


def reciprocal_rank(ranked: Sequence[object], target: object) -> float:
    """1 / position of `target` in `ranked` (1-based); 0 where it is missing."""
    return next((1.0 / place for place, item in enumerate(ranked, 1) if item == target), 0.0)


def mrr(rankings: Sequence[Sequence[object]], targets: Sequence[object]) -> np.ndarray:
    """Reciprocal rank of each case; float64 [N]."""
    return np.array([reciprocal_rank(r, t) for r, t in zip(rankings, targets, strict=True)])


def recall_at_k(
    rankings: Sequence[Sequence[object]], relevant: Sequence[set[object]], k: int
) -> np.ndarray:
    """|top k that are relevant| / min(k, |relevant|) of each case; float64 [N].

    Raises `ValueError` for a case without a relevant item.
    """
    if any(not wanted for wanted in relevant):
        raise ValueError("recall needs at least one relevant item per case; drop empty cases")
    return np.array(
        [
            len(set(ranked[:k]) & wanted) / min(k, len(wanted))
            for ranked, wanted in zip(rankings, relevant, strict=True)
        ]
    )


def paired_bootstrap(
    difference: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    seed: int = 0,
    rounds: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """(mean, low, high) of the weighted mean difference, resampling users.

    difference: float [U], one paired difference a user; weight: float [U] or None.
    With fewer than two users the interval is (-inf, inf).
    """
    weights = np.ones(len(difference)) if weight is None else weight
    if len(difference) == 0:
        return 0.0, -np.inf, np.inf
    mean = float(np.average(difference, weights=weights))
    if len(difference) < 2:
        return mean, -np.inf, np.inf
    rng = np.random.default_rng(seed)
    draws = np.empty(rounds)
    for start in range(0, rounds, 200):
        size = (min(200, rounds - start), len(difference))
        picks = rng.integers(0, len(difference), size)
        draws[start : start + 200] = (difference * weights)[picks].sum(1) / weights[picks].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return mean, float(low), float(high)


def compare(
    metric: str, value: PerUser, baseline: str, baseline_value: PerUser, *, seed: int = 0
) -> Evaluation:
    """A model and its baseline over the same users.

    Raises `ValueError` when the two have different users.
    """
    if not np.array_equal(value.users, baseline_value.users):
        raise ValueError("model and baseline must be evaluated on the same users")
    difference = value.value - baseline_value.value
    return Evaluation(
        metric=metric,
        value=value.mean,
        baseline=baseline,
        baseline_value=baseline_value.mean,
        difference=paired_bootstrap(difference, value.weight, seed=seed),
        n=len(difference),
    )


def mean_per_user(users: np.ndarray, values: np.ndarray) -> PerUser:
    """Each user's mean of per-case values, weighted by the user's cases."""
    names, codes = np.unique(users, return_inverse=True)
    cases = np.bincount(codes, minlength=len(names)).astype(float)
    return PerUser(names, np.bincount(codes, weights=values, minlength=len(names)) / cases, cases)
