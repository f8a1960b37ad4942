"""Off-policy value of a ranker from slates whose whole scored pool was logged: cascade DR.

Knows pools as arrays of log-preferences: a slate is drawn slot by slot with probabilities
proportional to exp(preference) among what is left (Plackett-Luce), which is how serving draws.
Does not know rankers or files.

With the pool, a challenger's probability of every shown slate is known, so items that it would
newly bring in count too. A slot's reward may depend on the slots above (arXiv 2007.12986), and a
reward model lowers the variance without adding bias (arXiv 2202.01562). Ratios are multiplied
down the slate and not clipped, so estimates are unbiased; a challenger far from the logging
policy shows in `effective_n`. Intervals resample users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.alignment.off_policy import Estimate, effective_sample_size, estimate_of


@dataclass(frozen=True)
class LoggedPools:
    """G slates of K slots, drawn from pools of P candidates.

    users: any dtype [G]; logged, target: float64 [G, P], log-preferences of the logging and of
    the other policy, -inf at padding; shown: int64 [G, K], places in the pool, -1 where a slate
    is shorter; reward: float64 [G, K]; expected: float64 [G, P], a reward model's value of each
    candidate in the first slot, and look: float64 [K], the share of it that a slot keeps.
    """

    users: np.ndarray
    logged: np.ndarray
    target: np.ndarray
    shown: np.ndarray
    reward: np.ndarray
    expected: np.ndarray
    look: np.ndarray

    def __post_init__(self) -> None:
        if self.shown.shape != self.reward.shape or self.logged.shape != self.target.shape:
            raise ValueError("shown and reward must be [G, K], logged and target [G, P]")

    def __len__(self) -> int:
        return len(self.users)


def slot_propensities(preference: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """P(the shown item at its slot | the slots above); float64 [G, K], 1 at padding.

    preference: float64 [G, P]; shown: int64 [G, K].
    """
    return _walk(preference, shown, None)[0]


def cascade_doubly_robust(pools: LoggedPools, *, seed: int = 0) -> Estimate:
    """The other policy's mean reward of a slate, and its difference from the logged one."""
    real = pools.shown >= 0
    target, expected_here = _walk(pools.target, pools.shown, pools.expected)
    logged = slot_propensities(pools.logged, pools.shown)
    ratio = np.cumprod(np.where(real, target / np.maximum(logged, 1e-300), 1.0), axis=1)
    above = np.concatenate([np.ones((len(pools), 1)), ratio[:, :-1]], axis=1)
    own = np.take_along_axis(pools.expected, np.maximum(pools.shown, 0), 1) * pools.look
    slots = above * expected_here * pools.look + ratio * (pools.reward - own)
    earned = np.where(real, slots, 0.0).sum(1)
    effective = effective_sample_size(ratio[:, -1]) if len(pools) else 0.0
    reward = np.where(real, pools.reward, 0.0).sum(1)
    return estimate_of("cascade DR", pools.users, earned, reward, effective, seed)


def _walk(
    preference: np.ndarray, shown: np.ndarray, value: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Down the slots: P(shown item | above) and the mean of `value` over what is left; [G, K]."""
    top = preference.max(1, keepdims=True)
    weight = np.exp(preference - top)
    rows = np.arange(len(weight))
    chance, mean = np.ones(shown.shape), np.zeros(shown.shape)
    for slot in range(shown.shape[1]):
        left = np.maximum(weight.sum(1), 1e-300)
        place, here = np.maximum(shown[:, slot], 0), shown[:, slot] >= 0
        chance[:, slot] = np.where(here, weight[rows, place] / left, 1.0)
        if value is not None:
            mean[:, slot] = (weight * value).sum(1) / left
        weight[rows[here], place[here]] = 0.0
    return chance, mean
