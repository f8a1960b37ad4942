"""The fusion policy under the contract of updates: groups are weight vectors of one user.

Knows the Dirichlet policy and its groups. Does not know rewards, logs or the loop
(`models.updates.contract`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from models.ranking.grade.config import GroupTraining
from models.ranking.grade.policy import FusionPolicy
from models.updates.contract import Terms
from models.updates.methods import GroupRelative

MAX_LOG_RATIO = 1.5  # a vector that an old policy served must not outweigh its group


@dataclass(frozen=True)
class WeightGroup:
    """N users with M weight vectors each; a member is one choice.

    observed [N, D]; drawn [N, M, T]; log_before [N, M, 1]; reward [N, M]; advantage [N, M, 1].
    """

    observed: Tensor
    drawn: Tensor
    log_before: Tensor
    reward: Tensor
    advantage: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class FusionUpdate:
    """A `models.updates.contract.Policy`; its reference is a frozen fusion policy."""

    policy: FusionPolicy

    def trained(self) -> Sequence[nn.Parameter]:
        return list(self.policy.parameters())

    def clipped(self) -> Sequence[nn.Parameter]:
        return self.trained()

    def terms(self, group: WeightGroup, reference: FusionPolicy) -> Terms:
        """The KL is exact, between the two Dirichlet distributions."""
        alpha, theirs = self.policy(group.observed), reference(group.observed)
        return Terms(
            log_policy=self.policy.density(alpha, group.drawn)[..., None],
            log_reference=reference.density(theirs, group.drawn)[..., None],
            kl=self.policy.divergence(alpha, theirs),
        )


def group_relative(rules: GroupTraining) -> GroupRelative:
    """The method of the group-relative stage."""
    return GroupRelative(clip=rules.clip, kl=rules.kl, max_log_ratio=MAX_LOG_RATIO)
