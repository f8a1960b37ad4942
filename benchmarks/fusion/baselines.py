"""Baselines for GRADE, trained on the same data.

Knows logs and observables, not the planted truth. Every baseline gets the same network and the same log.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from models.ranking.grade.config import FIRST_SESSION
from models.ranking.grade.logs import FusionLog, Observables
from models.ranking.grade.policy import FusionPolicy, log_density
from models.ranking.grade.rewards import training_rows

DEVIATION = 0.08  # of Gaussian exploration: about that of the logging Dirichlet's weights


class GaussianPolicy(FusionPolicy):
    """Explores by Gaussian noise around unbounded weights, which may leave the simplex."""

    def __init__(self, width: int, start: torch.Tensor) -> None:
        super().__init__(width, start)
        with torch.no_grad():
            self.direction.bias.copy_(start)

    def forward(self, observed: torch.Tensor) -> torch.Tensor:
        hidden = self.body(torch.nan_to_num(observed, 0.0, 0.0, 0.0).clamp(-10, 10))
        return torch.as_tensor(self.direction(hidden))

    @torch.no_grad()
    def mean(self, observed: torch.Tensor) -> torch.Tensor:
        """Projected onto the simplex for serving."""
        weights = self(observed).clamp_min(1e-4)
        return torch.as_tensor(weights / weights.sum(-1, keepdim=True))

    def draw(self, head: torch.Tensor, group: int, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn(len(head), group, head.shape[1], generator=generator)
        return head.detach()[:, None] + DEVIATION * noise

    def density(self, head: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        away = ((drawn - head[:, None]) / DEVIATION).square().sum(-1)
        return -0.5 * away - head.shape[1] * math.log(DEVIATION)

    def divergence(self, head: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((head - reference) / DEVIATION).square().sum(-1)

    def knows_logged_density(self) -> bool:
        return False


def invalid_share(drawn: torch.Tensor) -> float:
    """Of vectors [..., T]: a weight below 0, or a sum off 1 by more than 5 %."""
    bad = (drawn < 0).any(-1) | ((drawn.sum(-1) - 1).abs() > 0.05)
    return float(bad.float().mean())


def regression(
    log: FusionLog, observed: Observables, start: torch.Tensor, *, steps: int, seed: int
) -> FusionPolicy:
    """Logistic regression of satisfaction on weights(user) · slate means; serves the weights.

    Read against the user's usual slate, as GRADE's prior is."""
    torch.manual_seed(seed)
    policy = FusionPolicy(observed.width, start)
    level = nn.Parameter(torch.logit(log.satisfied.mean()).clone())
    slope = nn.Parameter(torch.tensor(1.0))
    groups: list[dict[str, object]] = [
        {"params": list(policy.parameters()), "weight_decay": 3e-2},
        {"params": [level, slope]},
    ]
    optimiser = torch.optim.AdamW(
        groups,
        2e-3, weight_decay=0.0,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    users, sessions = training_rows(log)
    for _ in range(steps):
        pick = torch.randint(len(users), (1024,))
        u, s = users[pick], sessions[pick]
        alpha = policy(observed.values[u, s])
        value = (
            (alpha / alpha.sum(-1, keepdim=True)) * (log.means[u, s] - observed.usual[u, s])
        ).sum(-1)
        loss = functional.binary_cross_entropy_with_logits(
            level + slope * value, log.satisfied[u, s]
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return policy


def reinforce(
    policy: FusionPolicy, log: FusionLog, observed: Observables, *, steps: int, seed: int
) -> FusionPolicy:
    """In place, from stage 1: each served vector's own feedback against the mean of all,
    weighed by clipped importance ratios; no groups, no prior."""
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(policy.parameters(), 5e-4, weight_decay=1e-2)
    users, sessions = training_rows(log, FIRST_SESSION)
    base = log.satisfied.mean()
    for _ in range(steps):
        pick = torch.randint(len(users), (2048,))
        u, s = users[pick], sessions[pick]
        density = log_density(policy(observed.values[u, s]), log.weights[u, s].clamp_min(1e-5))
        ratio = (density.detach() - log.log_density[u, s]).clamp(-10, 1.5).exp()
        loss = -(ratio * (log.satisfied[u, s] - base) * density).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
    return policy
