"""Intervals and tests that hold at every look: a confidence sequence and a sample-ratio check.

Knows sums per user. Does not know experiments, feedback nor when anyone looks.

Difference of two arms: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy
and Ramdas (arXiv 2103.06476, theorem 2.2: Robbins' normal mixture). Users, not slates, are
independent: the variance is that of the users' residuals y_u - r n_u. A user who comes back adds
to a residual that has been looked at, so the clock is not the number of users. It is that variance
itself, in units of one slate: slates times the design effect. With users whose visits resemble
each other, the process is more strongly correlated over time than one of independent steps with
the same variance, and crosses a boundary no more often (Slepian's inequality).

Sample ratio: the multinomial test with a Dirichlet mixture (Lindon and Malek, arXiv 2011.03567).
Each user enters once, so its Bayes factor is a martingale and the p-value holds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_USERS = 100  # per arm, and
LEAST_REWARDED = 20  # users with a reward per arm: below, the normal limit says little
_CONCENTRATION = 100.0  # of the Dirichlet mixture: detects shares that are off by a few percent


@dataclass(frozen=True)
class ArmSums:
    """The slates of one arm by user.

    slates, reward: float64 [U]. squares: the sum of each slate's squared reward.
    """

    slates: np.ndarray
    reward: np.ndarray
    squares: float

    @property
    def rate(self) -> float:
        """Reward per slate; NaN without slates."""
        total = float(self.slates.sum())
        return float(self.reward.sum()) / total if total else math.nan

    @property
    def rewarded(self) -> int:
        """Users with a reward."""
        return int(np.count_nonzero(self.reward))

    @property
    def enough(self) -> bool:
        return len(self.slates) >= LEAST_USERS and self.rewarded >= LEAST_REWARDED

    def variances(self) -> tuple[float, float]:
        """Of the rate: with users independent, and as if slates were."""
        total, rate = float(self.slates.sum()), self.rate
        residual = self.reward - rate * self.slates
        users = len(self.slates)
        clustered = float(residual @ residual) * users / max(users - 1, 1)
        return clustered / total**2, max(self.squares - rate**2 * total, 0.0) / total**2


@dataclass(frozen=True)
class Interval:
    """An estimate that may be read at any time. decided: it has enough users to be judged."""

    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def above(self) -> bool:
        return self.low > 0.0

    @property
    def below(self) -> bool:
        return self.high < 0.0


UNKNOWN = Interval(math.nan)


def boundary(time: float, *, level: float, tight_at: float) -> float:
    """How many standard errors an estimate may be off at intrinsic time `time`, over all times."""
    rho2 = (-2 * math.log(level) + math.log(-2 * math.log(level)) + 1) / tight_at
    grown = time * rho2
    return math.sqrt(2 * (1 + 1 / grown) * (0.5 * math.log1p(grown) - math.log(level)))


def difference(control: ArmSums, treated: ArmSums, *, level: float, tight_at: float) -> Interval:
    """Reward per slate of `treated` minus that of `control`, at every look with chance 1 - level.

    tight_at: slates of both arms at which the interval is narrowest. Infinite ends while an arm
    has too few users.
    """
    if not (len(control.slates) and len(treated.slates)):
        return UNKNOWN
    value = treated.rate - control.rate
    both = _variances_as(control, treated), _variances_as(treated, control)
    clustered, single = (sum(each) for each in zip(*both, strict=True))
    if not (_judged(control, treated) and clustered > 0.0 and single > 0.0):
        return Interval(value)
    slates = float(control.slates.sum() + treated.slates.sum())
    off = math.sqrt(clustered) * boundary(
        slates * clustered / single, level=level, tight_at=tight_at
    )
    return Interval(value, value - off, value + off)


def _judged(one: ArmSums, other: ArmSums) -> bool:
    """Enough users and rewards in one arm, and in the other as many users as would give those."""
    if not (one.enough or other.enough):
        return False
    for own, its_other in ((one, other), (other, one)):
        expected = len(own.slates) * its_other.rewarded / max(1, len(its_other.slates))
        if len(own.slates) < LEAST_USERS or max(own.rewarded, expected) < LEAST_REWARDED:
            return False
    return True


def _variances_as(own: ArmSums, other: ArmSums) -> tuple[float, float]:
    """The arm's variances. With too few rewards they say nothing, and an arm that lost them all
    must not look certain: the other arm's then, for as many slates."""
    if own.rewarded >= LEAST_REWARDED:
        return own.variances()
    clustered, single = other.variances()
    scale = float(other.slates.sum()) / float(own.slates.sum())
    return clustered * scale, single * scale


def mean(sums: ArmSums, *, level: float, tight_at: float) -> Interval:
    """Reward per slate of one arm, at every look with chance 1 - level."""
    if not len(sums.slates):
        return UNKNOWN
    clustered, single = sums.variances()
    if not sums.enough or clustered <= 0.0 or single <= 0.0:
        return Interval(sums.rate)
    slates = float(sums.slates.sum())
    off = math.sqrt(clustered) * boundary(
        slates * clustered / single, level=level, tight_at=tight_at
    )
    return Interval(sums.rate, sums.rate - off, sums.rate + off)


@dataclass(frozen=True)
class SampleRatio:
    """Whether arms have the users that their shares promise.

    p_value: holds at every look; 1 without users. chi_square: the classic statistic, for one look.
    """

    p_value: float
    chi_square: float

    def mismatch(self, level: float = 0.001) -> bool:
        return self.p_value < level


def sample_ratio(users: Sequence[int], shares: Sequence[float]) -> SampleRatio:
    """users, shares: by arm, in the same order. Arms without a share are left out."""
    pairs = [(n, share) for n, share in zip(users, shares, strict=True) if share > 0]
    total, whole = sum(n for n, _ in pairs), math.fsum(share for _, share in pairs)
    if not total:
        return SampleRatio(1.0, 0.0)
    log_bayes = math.lgamma(_CONCENTRATION) - math.lgamma(_CONCENTRATION + total)
    chi_square = 0.0
    for n, share in pairs:
        expected = share / whole
        prior = _CONCENTRATION * expected
        log_bayes += math.lgamma(prior + n) - math.lgamma(prior) - n * math.log(expected)
        chi_square += (n - total * expected) ** 2 / (total * expected)
    return SampleRatio(math.exp(min(0.0, -log_bayes)), chi_square)
