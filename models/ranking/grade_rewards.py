"""The rewards of a weight vector: posterior feedback, dense prior, format.

Knows slates ranked by weights, and a model of satisfaction that is fitted on logged
feedback. Does not know policies nor what users truly value.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from models.ranking.grade_log import FusionLog, Observables

FIRST_SESSION = 6  # before it a user's own feedback says nothing to learn from


def slate_means(pools: torch.Tensor, weights: torch.Tensor, looked: torch.Tensor) -> torch.Tensor:
    """What slates would hold: pools [N, C, T], weights [N, G, T], looked [K] ->
    float32 [N, G, T], attention-weighted means of the K best by weighted sum."""
    top = torch.bmm(weights, pools.transpose(1, 2)).topk(len(looked), -1).indices
    wide = top.flatten(1)[..., None].expand(-1, -1, pools.shape[-1])
    chosen = pools.gather(1, wide).view(*top.shape, pools.shape[-1])
    return (chosen * looked[:, None]).sum(2) / looked.sum()


def engagement(means: torch.Tensor) -> torch.Tensor:
    """The prior of a platform without posterior feedback: predicted plays of the slate,
    with a little of long views; dense, cheap, and not what users value."""
    return 0.9 * means[..., 0] + 0.1 * means[..., 1]


def format_reward(weights: torch.Tensor) -> torch.Tensor:
    """0 for a vector on the simplex, down to -1 by how far it is from it: [..., T] -> [...]."""
    below = (-weights).clamp_min(0).sum(-1)
    return -(below + (weights.sum(-1) - 1).abs()).clamp_max(1.0)


class Satisfaction(nn.Module):
    """The dense prior after correction: logit P(satisfied | observables, slate means).

    The user's own level, plus a slope times what the slate holds beyond the user's usual
    one, each task at its own worth to the user (on the simplex, begun at the platform's
    weights). Mostly linear in the observables: on validation users a deeper one told less.
    """

    def __init__(self, width: int, start: torch.Tensor, rate: float) -> None:
        super().__init__()
        self.start = nn.Buffer(start.log())
        self.linear = nn.Linear(width, len(start))
        self.bent = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(width, 32), nn.GELU(), nn.Linear(32, len(start))
        )
        self.level = nn.Linear(width, 1)
        self.slope = nn.Parameter(torch.tensor(1.0))
        with torch.no_grad():
            self.level.bias.fill_(math.log(rate / (1 - rate)))

    def worth(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, T], on the simplex."""
        told = self.linear(observed) + self.bent(observed) + self.start
        return torch.as_tensor(told.softmax(-1))

    def forward(self, observed: torch.Tensor, beyond: torch.Tensor) -> torch.Tensor:
        """[N, D], slate means beyond the usual [N, G, T] -> logits [N, G]."""
        gain = (self.worth(observed)[:, None] * beyond).sum(-1)
        return torch.as_tensor(self.level(observed) + self.slope * gain)


def training_rows(log: FusionLog, first: int = FIRST_SESSION) -> tuple[torch.Tensor, torch.Tensor]:
    """(users, sessions) int64 [N] of learners, from `first` on."""
    users = torch.arange(log.learners).repeat_interleave(log.sessions - first)
    return users, torch.arange(first, log.sessions).repeat(log.learners)


def fit_satisfaction(
    log: FusionLog,
    observed: Observables,
    start: torch.Tensor,
    *,
    steps: int,
    seed: int,
    first: int = FIRST_SESSION,
) -> Satisfaction:
    """Binary cross-entropy on logged satisfaction, point in time."""
    torch.manual_seed(seed)
    model = Satisfaction(observed.width, start, float(log.satisfied.mean()))
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    users, sessions = training_rows(log, first)
    for _ in range(steps):
        pick = torch.randint(len(users), (1024,))
        u, s = users[pick], sessions[pick]
        beyond = (log.means[u, s] - observed.usual[u, s])[:, None]
        logits = model(observed.values[u, s], beyond)[:, 0]
        loss = functional.binary_cross_entropy_with_logits(logits, log.satisfied[u, s])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)
