"""Losses of policy updates: listwise preference, clipped policy gradient, divergences.

Knows tensors. Does not know policies, groups or optimisers. Shapes: N groups, M members of a
group, L tokens of a member (1 where a member is one choice), V choices of a token. A mask is
True at tokens that count; None: all count.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Divergence = Literal["forward_kl", "js"]


def listwise_dpo(margin: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(-log sum over rejected of exp(margin_rejected - margin_chosen)); [N].

    margin: beta * (log policy - log reference) [N, M]; chosen: int64 [N]; rejected: bool [N, M].
    With one rejected member this is DPO's loss (arXiv 2305.18290), else S-DPO's (2406.09215).
    """
    ahead = margin - margin.gather(1, chosen.unsqueeze(1))
    return -logsigmoid(-ahead.masked_fill(~rejected, -torch.inf).logsumexp(1))


def group_advantage(rewards: Tensor) -> Tensor:
    """Rewards [..., M] relative to their own group: mean 0, unit deviation; no critic.

    The group-relative advantage of GRPO (arXiv 2402.03300). A group of equal rewards, or of a
    single member, gets zeros.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    scale = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(scale > 1e-6, centred / scale.clamp_min(1e-6), torch.zeros_like(centred))


def clipped_gain(
    log_policy: Tensor,
    log_before: Tensor,
    advantage: Tensor,
    *,
    clip: float,
    max_log_ratio: float,
    mask: Tensor | None = None,
) -> Tensor:
    """The clipped objective of PPO and GRPO, to be maximised: a mean over tokens.

    log_policy, log_before: [N, M, L], under the policy and under the one that drew the tokens.
    advantage: [N, M, L] per token, or [N, M, 1] for whole members.
    """
    ratio = (log_policy - log_before).clamp(-max_log_ratio, max_log_ratio).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return masked_mean(gain, mask)


def divergence(
    student: Tensor, teacher: Tensor, kind: Divergence, mask: Tensor | None = None
) -> Tensor:
    """The mean over tokens of a divergence between two distributions; a scalar.

    student, teacher: logits [..., V], -inf at choices that neither offers. The gradient reaches
    the student alone. forward_kl: KL(teacher || student); js: Jensen-Shannon, at most log 2.
    """
    ours, theirs = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    if kind == "forward_kl":
        each = _kl(theirs, ours)
    elif kind == "js":
        middle = torch.logaddexp(ours, theirs) - torch.log(torch.tensor(2.0))
        each = (_kl(theirs, middle) + _kl(ours, middle)) / 2
    else:
        raise ValueError(f"divergence {kind!r} is neither forward_kl nor js")
    return masked_mean(each, mask)


def choice_kl(log_policy: Tensor, log_reference: Tensor, real: Tensor) -> Tensor:
    """KL(policy || reference) of one choice among a group's real members; [N].

    Log-preferences [N, M], up to a constant of the group; real: bool [N, M].
    """
    ours, theirs = (
        x.masked_fill(~real, -torch.inf).log_softmax(-1) for x in (log_policy, log_reference)
    )
    return _kl(ours, theirs)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of values [...] over the mask's True places; 0 where none is."""
    if mask is None:
        return values.mean()
    kept = mask.expand(values.shape)
    return torch.where(kept, values, torch.zeros(())).sum() / kept.sum().clamp_min(1)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL of log-probabilities [..., V] over the last axis; a choice of probability 0 adds 0."""
    possible = first > -torch.inf
    ratio = torch.where(possible, first, 0.0) - torch.where(possible, second, 0.0)
    return torch.where(possible, first.exp() * ratio, torch.zeros(())).sum(-1)
