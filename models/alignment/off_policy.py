"""Off-policy value of another policy from logs: IPS, SNIPS and DR with intervals.

Knows rewards, propensities and users as arrays. Does not know rankers, except in
`slate_decisions`, which reads a slate as a row of choices. Intervals resample users.

Pools of candidates are not logged, only slates. So each slot is read as a choice among the
items from there down: inside the logged support and at one slot, so position favours neither
policy. The figure is the value of re-ordering shown slates; the value of items that a policy
would newly bring in is not estimated.

A slate that was ranked by drawn fusion weights is a choice given those weights: `logged` is
the probability under their scores, `target` the other policy's own. The draw is independent of
the outcome, so the ratios stay unbiased given it and need no integral over all weights. The
logging policy's own value is that of the served slates, draws included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.training.evaluation import paired_bootstrap

MAX_RATIO = 20.0


@dataclass(frozen=True)
class Decisions:
    """N logged choices. users [N]; the rest float64 [N].

    logged, target: the choice's probability under either policy; expected: a reward model's
    value of the logged choice; expected_target: its mean under the target policy.
    """

    users: np.ndarray
    reward: np.ndarray
    logged: np.ndarray
    target: np.ndarray
    expected: np.ndarray
    expected_target: np.ndarray

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def ratio(self) -> np.ndarray:
        """Importance weights, clipped at `MAX_RATIO`."""
        return np.asarray(np.minimum(self.target / np.maximum(self.logged, 1e-9), MAX_RATIO))


@dataclass(frozen=True)
class Estimate:
    """A policy's value and its difference from the logging policy's, with 95 % intervals."""

    method: str
    value: float
    logged_value: float
    difference: tuple[float, float, float]  # mean, low, high
    effective_n: float
    interval: tuple[float, float] = (-np.inf, np.inf)  # of the value


def effective_sample_size(ratio: np.ndarray) -> float:
    """(sum w)^2 / sum w^2, the equivalent number of unweighted choices; ratio: float [N]."""
    square = float((ratio**2).sum())
    return float(ratio.sum()) ** 2 / square if square else 0.0


def ips(decisions: Decisions, *, seed: int = 0) -> Estimate:
    """Inverse propensity scoring: unbiased up to the clip, high variance."""
    return _estimate("IPS", decisions, decisions.ratio * decisions.reward, seed)


def snips(decisions: Decisions, *, seed: int = 0) -> Estimate:
    """Self-normalised inverse propensity scoring: weights scaled to mean 1."""
    mean = float(decisions.ratio.mean()) if len(decisions) else 1.0
    ratio = decisions.ratio / max(mean, 1e-9)
    value = float((ratio * decisions.reward).mean()) if len(decisions) else 0.0
    # Linearised, so that the interval includes the error of the estimated scale.
    return _estimate("SNIPS", decisions, ratio * (decisions.reward - value) + value, seed)


def doubly_robust(decisions: Decisions, *, seed: int = 0) -> Estimate:
    """The reward model's value under the target, corrected by weighted residuals
    (arXiv 1103.4601)."""
    residual = decisions.ratio * (decisions.reward - decisions.expected)
    return _estimate("DR", decisions, decisions.expected_target + residual, seed)


def estimate_of(
    method: str,
    users: np.ndarray,
    earned: np.ndarray,
    reward: np.ndarray,
    effective_n: float,
    seed: int,
) -> Estimate:
    """The mean of `earned` and its difference from `reward`, with intervals; all [N]."""
    names, codes = np.unique(users, return_inverse=True)
    count = np.bincount(codes, minlength=len(names)).astype(float)

    def interval(values: np.ndarray) -> tuple[float, float, float]:
        mean = np.bincount(codes, values, len(names)) / np.maximum(count, 1)
        return paired_bootstrap(mean, count, seed=seed)

    return Estimate(
        method=method,
        value=float(earned.mean()) if len(earned) else float("nan"),
        logged_value=float(reward.mean()) if len(earned) else float("nan"),
        difference=interval(earned - reward),
        effective_n=effective_n,
        interval=interval(earned)[1:],
    )


def _estimate(method: str, decisions: Decisions, earned: np.ndarray, seed: int) -> Estimate:
    effective = effective_sample_size(decisions.ratio)
    return estimate_of(method, decisions.users, earned, decisions.reward, effective, seed)


def fitted_sharpness(scores: np.ndarray, slot: np.ndarray, real: np.ndarray) -> float:
    """The k at which a softmax of k * score best explains the slates' orders.

    scores: log-preferences [G, C]; slot: int [G, C]; real: bool [G, C]. A served slate is drawn
    slot by slot (Plackett-Luce) with a temperature relative to a pool that is not logged; its
    sharpness on the slate's own items is fitted instead.
    """
    grid = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    likelihood = [_choice_log_probability(k * scores, slot, real)[0].sum() for k in grid]
    return grid[int(np.argmax(likelihood))]


def slate_decisions(
    users: np.ndarray,
    reward: np.ndarray,
    slot: np.ndarray,
    real: np.ndarray,
    logged_scores: np.ndarray,
    target_scores: np.ndarray,
    expected: np.ndarray,
) -> Decisions:
    """Each slot except a slate's last as one choice among the items from there down.

    users [G]; the rest [G, C]: reward, slot, real (not padding), the policies' log-preferences
    and a model's expected reward of each candidate.
    """
    logged, group, place = _choice_log_probability(logged_scores, slot, real)
    target, _, _ = _choice_log_probability(target_scores, slot, real)
    below = _below(slot, real)[group, place]
    mass = np.where(below, np.exp(_centred(target_scores, real))[group], 0.0)
    mean = (mass * expected[group]).sum(1) / np.maximum(mass.sum(1), 1e-12)
    return Decisions(
        users=users[group],
        reward=reward[group, place].astype(float),
        logged=np.exp(logged),
        target=np.exp(target),
        expected=expected[group, place].astype(float),
        expected_target=mean,
    )


def _choice_log_probability(
    scores: np.ndarray, slot: np.ndarray, real: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log P(the item of this slot | items from there down), with its group and place; [N]."""
    centred, below = _centred(scores, real), _below(slot, real)
    open_choice = real & (below.sum(2) > 1)
    group, place = np.nonzero(open_choice)
    weight = np.where(below[group, place], np.exp(centred)[group], 0.0).sum(1)
    return centred[group, place] - np.log(np.maximum(weight, 1e-300)), group, place


def _below(slot: np.ndarray, real: np.ndarray) -> np.ndarray:
    """bool [G, C, C]: whether the last axis' item is at or below this item's slot."""
    return np.asarray((slot[:, None, :] >= slot[:, :, None]) & real[:, None, :] & real[:, :, None])


def _centred(scores: np.ndarray, real: np.ndarray) -> np.ndarray:
    top = np.where(real, scores, -np.inf).max(1, keepdims=True, initial=-1e9)
    return np.where(real, np.maximum(scores - top, -60.0), -60.0).astype(float)
