"""The methods of an update: listwise preference, one group-relative step, self-distillation.

Knows what a group must hold for each. Does not know policies. The model cards say which surface
uses which method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.updates.contract import Terms
from models.updates.losses import (
    Divergence,
    clipped_gain,
    divergence,
    listwise_dpo,
)


class PreferenceGroup(Protocol):
    """N lists: the chosen member, int64 [N], and those that it is preferred to, bool [N, M].

    weight: float32 [N]; mask: bool [N, M, L] of tokens that count, or None.
    """

    @property
    def chosen(self) -> Tensor: ...
    @property
    def rejected(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor | None: ...


class RewardedGroup(Protocol):
    """N groups of M members that were drawn.

    log_before: [N, M, L] under the policy that drew them; reward: [N, M]; advantage: [N, M, L],
    or [N, M, 1] where a member is credited as a whole; mask: bool [N, M, L] or None.
    """

    @property
    def log_before(self) -> Tensor: ...
    @property
    def reward(self) -> Tensor: ...
    @property
    def advantage(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor | None: ...


class TokenGroup(Protocol):
    """N sequences of the policy's own; mask: bool [N, L] of tokens that count, or None."""

    @property
    def mask(self) -> Tensor | None: ...


@dataclass(frozen=True)
class ListwisePreference:
    """Prefers the chosen member of each list. `beta`: the strength of the pull to the reference.

    The reported reward is the share of lists whose chosen member has gained on all rejected ones.
    """

    beta: float = 2.0
    name: str = "listwise preference"
    passes: int = 1

    def loss(self, terms: Terms, group: PreferenceGroup) -> Tensor:
        margin = self._margin(terms, group)
        return (listwise_dpo(margin, group.chosen, group.rejected) * group.weight).mean()

    def reward(self, terms: Terms, group: PreferenceGroup) -> float:
        margin = self._margin(terms, group).detach()
        ahead = margin.gather(1, group.chosen.unsqueeze(1))[:, 0]
        others = margin.masked_fill(~group.rejected, -torch.inf).amax(1)
        return float((ahead > others).float().mean())

    def _margin(self, terms: Terms, group: PreferenceGroup) -> Tensor:
        gained = terms.log_policy - terms.log_reference
        if group.mask is not None:
            gained = torch.where(group.mask, gained, torch.zeros(()))
        return self.beta * gained.sum(-1)


@dataclass(frozen=True)
class GroupRelative:
    """One step of GRPO: members relative to their own group, clipped, with KL to the reference.

    The reported reward is the mean of the drawn members' rewards.
    """

    clip: float = 0.2
    kl: float = 0.02
    max_log_ratio: float = 1.5
    name: str = "group-relative"
    passes: int = 2

    def loss(self, terms: Terms, group: RewardedGroup) -> Tensor:
        gain = clipped_gain(
            terms.log_policy,
            group.log_before,
            group.advantage,
            clip=self.clip,
            max_log_ratio=self.max_log_ratio,
            mask=group.mask,
        )
        return self.kl * terms.kl.mean() - gain

    def reward(self, terms: Terms, group: RewardedGroup) -> float:
        del terms
        return float(group.reward.mean())


@dataclass(frozen=True)
class SelfDistillation:
    """The policy learns from itself: the teacher has the same weights and a privileged context.

    Both read sequences that the policy drew; the teacher knows the outcome and gets no gradient.
    kl: weight of KL to the frozen reference. The reported reward is minus the divergence.
    """

    kind: Divergence = "forward_kl"
    kl: float = 0.0
    name: str = "self-distillation"
    passes: int = 1

    def loss(self, terms: Terms, group: TokenGroup) -> Tensor:
        away = self._away(terms, group)
        return away + self.kl * terms.kl.mean() if self.kl else away

    def reward(self, terms: Terms, group: TokenGroup) -> float:
        return -float(self._away(terms, group).detach())

    def _away(self, terms: Terms, group: TokenGroup) -> Tensor:
        if terms.logits is None or terms.teacher is None:
            raise ValueError("self-distillation needs the logits of student and teacher")
        return divergence(terms.logits, terms.teacher, self.kind, group.mask)
