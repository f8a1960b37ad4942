"""Off-policy value of another policy's slates, from logged slates: four estimators.

Knows per-slot rewards and the probability of each slot's item under the logging policy and the
target. Does not know items, rankers or how a slate was drawn. Each estimator trades variance
for an assumption:

- `slate_ips`: none; the product of K ratios, useless for long slates.
- `cascade`: a slot's reward depends on itself and the slots above. Probabilities are given the
  slots above, as serving logs them (RIPS, arXiv 2007.12986).
- `item_position`: a slot's reward depends on its own item only. The policies draw each slot
  independently, given the user (arXiv 1804.10488).
- `pseudoinverse`: the slate's reward is a sum over (item, slot) of which only the total is
  observed. Policies as for `item_position`; the pseudoinverse then has the closed form
  1 + sum(ratio - 1) (arXiv 1605.04812).

Estimates exist only inside the logged support: items that are never logged have no reward, so a
target that shows them is refused, with the share of its mass outside. Intervals resample users,
whose slates are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.alignment.off_policy import Estimate, effective_sample_size, estimate_of

MAX_OUTSIDE = 0.01


class OutsideSupport(ValueError):
    """The target policy shows items that the log never shows; no estimate exists."""


@dataclass(frozen=True)
class LoggedSlates:
    """N slates of K slots. users: any dtype [N]; the rest float64 [N, K].

    logged, target: the probability of the shown item at its slot under either policy;
    given the slots above for `cascade` and `slate_ips`, the slot's own for the others.
    A slate shorter than K is padded with logged = target = 1 and reward 0.
    """

    users: np.ndarray
    reward: np.ndarray
    logged: np.ndarray
    target: np.ndarray

    def __post_init__(self) -> None:
        if not (self.reward.shape == self.logged.shape == self.target.shape):
            raise ValueError("reward, logged and target must all be [slates, slots]")
        if len(self.users) != len(self.reward):
            raise ValueError("one user per slate is needed")
        if not (np.isfinite(self.logged) & (self.logged > 0) & (self.logged <= 1)).all():
            raise OutsideSupport(
                "a logged propensity is 0, above 1 or missing: leave out slates that were "
                "not drawn (a fallback's order has propensity 1)"
            )
        if not (np.isfinite(self.target) & (self.target >= 0) & (self.target <= 1)).all():
            raise ValueError("a target probability is not in [0, 1]")

    @property
    def ratio(self) -> np.ndarray:
        """target / logged, float64 [N, K]. Not clipped: the intervals must hold."""
        return np.asarray(self.target / self.logged)


def slate_ips(slates: LoggedSlates, *, normalised: bool = False, seed: int = 0) -> Estimate:
    """The slate's total reward weighted by the whole slate's ratio; assumes nothing."""
    weight = slates.ratio.prod(1)
    return _weighted("slate IPS", slates, weight[:, None], normalised, seed)


def cascade(slates: LoggedSlates, *, normalised: bool = False, seed: int = 0) -> Estimate:
    """Each slot's reward weighted by the product of ratios down to it (RIPS)."""
    return _weighted("cascade", slates, np.cumprod(slates.ratio, 1), normalised, seed)


def item_position(slates: LoggedSlates, *, normalised: bool = False, seed: int = 0) -> Estimate:
    """Each slot's reward weighted by its own ratio; slots are independent."""
    return _weighted("item-position", slates, slates.ratio, normalised, seed)


def pseudoinverse(slates: LoggedSlates, *, normalised: bool = False, seed: int = 0) -> Estimate:
    """The slate's total weighted by 1 + sum(ratio - 1), which may be negative."""
    weight = 1 + (slates.ratio - 1).sum(1)
    return _weighted("pseudoinverse", slates, weight[:, None], normalised, seed)


def outside_support(logged: np.ndarray, target: np.ndarray, *, floor: float = 1e-9) -> float:
    """The mean share of the target's mass on candidates that are never logged.

    logged, target: probabilities over all candidates, float [.., C].

    Raises `OutsideSupport` above `MAX_OUTSIDE`.
    """
    share = float(np.where(logged <= floor, target, 0.0).sum(-1).mean())
    if share > MAX_OUTSIDE:
        raise OutsideSupport(
            f"{share:.1%} of the target's choices are never logged: explore them first, or "
            "mix the target with the logging policy"
        )
    return share


def _weighted(
    method: str, slates: LoggedSlates, weight: np.ndarray, normalised: bool, seed: int
) -> Estimate:
    """weight [N, K] or [N, 1]. Normalised: each slot's weights are scaled to mean 1."""
    reward = slates.reward
    earned = (weight * reward).sum(1)
    if normalised:
        scale = weight / np.maximum(weight.mean(0), 1e-12)
        part = reward if weight.shape[1] > 1 else reward.sum(1, keepdims=True)
        mean = (scale * part).mean(0)
        # Linearised, so that the interval includes the error of the estimated scale.
        earned = (scale * (part - mean) + mean).sum(1)
    name = f"{method}, self-normalised" if normalised else method
    smallest = min(effective_sample_size(column) for column in weight.T)
    return estimate_of(name, slates.users, earned, reward.sum(1), smallest, seed)
