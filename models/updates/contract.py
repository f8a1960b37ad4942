"""(policy, group, reward, reference) -> policy and KL: the loop that every update runs.

Knows policies and methods as protocols. Does not know any surface or loss. A policy states how
probable a group's members are, beside a frozen reference; a method turns that into a loss
(`models.updates.methods`). Groups are read one by one, so that a group may be drawn
from the policy as it is then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from models.updates.report import UpdateReport

Group = TypeVar("Group", contravariant=True)
Reference = TypeVar("Reference", contravariant=True)
StepCallback = Callable[[int, float], None]
"""Called after each group with its number from 0 and the loss."""

REPORTED_SHARE = 0.1  # of the groups, at the beginning and at the end


@dataclass(frozen=True)
class Terms:
    """What a policy says of N groups with M members of L tokens.

    log_policy, log_reference: [N, M, L], the second without gradient; kl: [N], of the policy to
    the reference. logits, teacher: [N, L, V], for distillation alone. extra: a loss of the
    policy's own that is added, such as a cross-entropy that keeps probabilities calibrated.
    """

    log_policy: Tensor
    log_reference: Tensor
    kl: Tensor
    logits: Tensor | None = None
    teacher: Tensor | None = None
    extra: Tensor | None = None


class Policy(Protocol[Group, Reference]):
    """A policy under training. The reference is frozen: an earlier policy or its stored scores."""

    def trained(self) -> Sequence[nn.Parameter]:
        """The parameters that change."""

    def clipped(self) -> Sequence[nn.Parameter]:
        """The parameters whose joint gradient is clipped."""

    def terms(self, group: Group, reference: Reference) -> Terms:
        """One forward pass, with gradient."""


class Method(Protocol[Group]):
    """One kind of update. `passes`: optimiser steps on a group."""

    @property
    def name(self) -> str: ...

    @property
    def passes(self) -> int: ...

    def loss(self, terms: Terms, group: Group) -> Tensor: ...

    def reward(self, terms: Terms, group: Group) -> float:
        """How good the policy's choices are, higher is better; for the report."""


@dataclass(frozen=True)
class StepSettings:
    """The optimiser: AdamW with a clipped gradient."""

    rate: float
    decay: float = 0.0
    max_norm: float = 1.0


def update_policy(
    policy: Policy[Any, Any],
    groups: Iterable[Any],
    reference: Any,
    method: Method[Any],
    settings: StepSettings,
    *,
    step: StepCallback | None = None,
) -> UpdateReport:
    """Trains `policy` in place, one group after the other, near `reference`.

    Raises `ValueError` for no groups.
    """
    optimiser = torch.optim.AdamW(
        list(policy.trained()), settings.rate, weight_decay=settings.decay
    )
    kl, reward, steps = [], [], 0
    for number, group in enumerate(groups):
        loss = torch.zeros(())
        for _ in range(method.passes):
            terms = policy.terms(group, reference)
            loss = method.loss(terms, group)
            if terms.extra is not None:
                loss = loss + terms.extra
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(policy.clipped(), settings.max_norm)
            optimiser.step()
            steps += 1
        kl.append(float(terms.kl.detach().mean()))
        reward.append(method.reward(terms, group))
        if step is not None:
            step(number, float(loss.detach()))
    if not steps:
        raise ValueError("an update needs at least one group")
    tenth = max(round(len(kl) * REPORTED_SHARE), 1)
    before, after = reward[:tenth], reward[-tenth:]
    return UpdateReport(method.name, steps, _mean(kl[-tenth:]), _mean(before), _mean(after))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
