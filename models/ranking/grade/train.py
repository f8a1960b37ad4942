"""Training of fusion policies: listwise, then group-relative, then updates on new feedback.

Knows policies, logs and rewards. Does not know a planted truth, except through a reward that a
caller passes in to measure a ceiling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.ranking.grade.config import GroupTraining
from models.ranking.grade.fusion_update import FusionUpdate, WeightGroup, group_relative
from models.ranking.grade.logs import FusionLog, Observables
from models.ranking.grade.policy import FusionPolicy
from models.ranking.grade.rewards import (
    Satisfaction,
    engagement,
    format_reward,
    slate_means,
    training_rows,
)
from models.updates.losses import group_advantage

StepCallback = Callable[[int, FusionPolicy], None]
"""Called after each step with its number and the policy."""


GroupReward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(users [N], sessions [N], pools [N, C, T], weights [N, G, T]) -> rewards [N, G]."""


def train_listwise(
    log: FusionLog, observed: Observables, start: torch.Tensor, *, steps: int, seed: int
) -> FusionPolicy:
    """Stage 1: LambdaLoss (Wang et al., CIKM 2018; NDCG weights) over logged slates.

    Gains are actions, each in units of its own rate and divided by the slot's attention, to
    correct for position bias.
    """
    torch.manual_seed(seed)
    policy = FusionPolicy(observed.width, start)
    sharpness = torch.zeros(1, requires_grad=True)  # else the weights would set the scores' scale
    optimiser = torch.optim.AdamW([*policy.parameters(), sharpness], 1e-3, weight_decay=1e-2)
    users, sessions = training_rows(log)
    rate = log.labels.float().mean((0, 1, 2)).clamp_min(1e-5)
    for _ in range(steps):
        pick = torch.randint(len(users), (512,))
        u, s = users[pick], sessions[pick]
        shown = log.shown[u, s].long()
        items = log.pools[u, s].float().gather(1, shown[..., None].expand(-1, -1, len(start)))
        acted = log.labels[u, s] / rate / log.attention[:, None]
        gains = (acted * start).sum(-1)
        alpha = policy(observed.values[u, s])
        weights = alpha / alpha.sum(-1, keepdim=True)
        scores = torch.einsum("nct,nt->nc", items, weights)
        loss = lambda_loss(sharpness.exp() * scores, gains)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return policy


def lambda_loss(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """Pairwise logistic loss over scores and gains [N, K], each pair weighted by the change of
    DCG if the two were swapped."""
    order = scores.detach().argsort(-1, descending=True).argsort(-1)
    discount = 1 / torch.log2(order + 2.0)
    gain_gap = gains[:, :, None] - gains[:, None, :]
    swap = (gain_gap * (discount[:, :, None] - discount[:, None, :])).abs()
    better = (gain_gap > 0).float()
    pairs = torch.nn.functional.softplus(-(scores[:, :, None] - scores[:, None, :]))
    return (pairs * swap * better).sum((1, 2)).mean() / gains.mean().clamp_min(1e-6)


def train_group_relative(
    policy: FusionPolicy,
    log: FusionLog,
    observed: Observables,
    reward: GroupReward,
    rules: GroupTraining,
    seed: int,
    *,
    progress: StepCallback | None = None,
) -> FusionPolicy:
    """Stage 2, in place; the incoming policy is the reference. Returns the policy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    reference = policy.frozen()
    optimiser = torch.optim.AdamW(policy.parameters(), rules.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rules.rate, total_steps=2 * rules.steps
    )
    users, sessions = training_rows(log, rules.first)
    for step in range(rules.steps):
        pick = torch.randint(len(users), (rules.batch,))
        u, s = users[pick], sessions[pick]
        seen, pools = observed.values[u, s], log.pools[u, s].float()
        with torch.no_grad():
            alpha = policy(seen)
            drawn = policy.draw(alpha, rules.group, generator)
            drawn[:, 0] = log.weights[u, s].clamp_min(1e-5)
            before = policy.density(alpha, drawn)
            if policy.knows_logged_density():
                before[:, 0] = log.log_density[u, s]
            advantage = group_advantage(reward(u, s, pools, drawn) + format_reward(drawn))
        for _ in range(2):
            loss = clipped_objective(policy, reference, seen, drawn, before, advantage, rules)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        if progress is not None:
            progress(step, policy)
    return policy


def clipped_objective(
    policy: FusionPolicy,
    reference: FusionPolicy,
    seen: torch.Tensor,
    drawn: torch.Tensor,
    before: torch.Tensor,
    advantage: torch.Tensor,
    rules: GroupTraining,
) -> torch.Tensor:
    """The clipped objective of GRPO (arXiv 2402.03300), negated, plus KL to the reference.

    before, advantage: [N, G].
    """
    group = WeightGroup(seen, drawn, before[..., None], advantage, advantage[..., None])
    return group_relative(rules).loss(FusionUpdate(policy).terms(group, reference), group)


def feedback_reward(
    log: FusionLog, observed: Observables, prior: Satisfaction | None, rules: GroupTraining
) -> GroupReward:
    """The reward of logged feedback: posterior plus dense prior.

    Member 0 of each group is the served vector; only it has posterior feedback, relative to the
    prior's expectation, or to the mean without a prior.
    """
    base = float(log.satisfied.mean())

    def reward(
        u: torch.Tensor, s: torch.Tensor, pools: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros(weights.shape[:2])
        means = slate_means(pools, weights, log.attention)
        expected = torch.full_like(total, base)
        if rules.engaged:
            total += rules.prior * engagement(means)
        elif prior is not None:
            expected = prior(observed.values[u, s], means - observed.usual[u, s][:, None]).sigmoid()
            total += rules.prior * expected
        surprise = log.satisfied[u, s] - expected[:, 0]
        total[:, 0] += rules.posterior * surprise
        return total

    return reward


def update_policy(
    policy: FusionPolicy,
    log: FusionLog,
    observed: Observables,
    prior: Satisfaction,
    *,
    since: int,
    steps: int,
    seed: int,
) -> FusionPolicy:
    """A new policy, trained from a served one on the sessions from `since` on.

    It stays near the served policy, which is not changed.

    Raises:
        ValueError: there is no session from `since` on.
    """
    if since >= log.sessions:
        raise ValueError(f"no session from {since} on: the log has {log.sessions}; pass an earlier")
    challenger = policy.frozen().requires_grad_(True)
    rules = GroupTraining(steps=steps, rate=3e-4, kl=0.01, first=since)
    reward = feedback_reward(log, observed, prior, rules)
    return train_group_relative(challenger, log, observed, reward, rules, seed)
