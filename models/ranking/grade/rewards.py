"""The rewards of a weight vector: posterior feedback, dense prior, format.

Knows slates ranked by weights, and a model of satisfaction that is fitted on logged
feedback. Does not know policies or what users truly value.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from models.ranking.grade.config import FIRST_SESSION
from models.ranking.grade.logs import FusionLog, Observables
from models.ranking.grade.worth import CredibleWorth, Worth


def slate_means(
    pools: torch.Tensor, weights: torch.Tensor, attention: torch.Tensor
) -> torch.Tensor:
    """Mean predictions of the slates that weights select.

    pools [N, C, T], weights [N, G, T], attention [K] -> float32 [N, G, T], attention-weighted
    means over the K best candidates by weighted sum.
    """
    top = torch.bmm(weights, pools.transpose(1, 2)).topk(len(attention), -1).indices
    wide = top.flatten(1)[..., None].expand(-1, -1, pools.shape[-1])
    chosen = pools.gather(1, wide).view(*top.shape, pools.shape[-1])
    return (chosen * attention[:, None]).sum(2) / attention.sum()


def engagement(means: torch.Tensor) -> torch.Tensor:
    """The prior without posterior feedback: the slate's predicted plays and a little of its
    long views; dense, cheap, and not what users value. [..., T] -> [...]."""
    return 0.9 * means[..., 0] + 0.1 * means[..., 1]


def format_reward(weights: torch.Tensor) -> torch.Tensor:
    """0 for a vector on the simplex, down to -1 by how far it is from it: [..., T] -> [...]."""
    below = (-weights).clamp_min(0).sum(-1)
    return -(below + (weights.sum(-1) - 1).abs()).clamp_max(1.0)


class Satisfaction(nn.Module):
    """The dense prior after correction: logit P(satisfied | observables, slate means).

    The user's own level, plus a slope times the slate's excess over the user's usual slate,
    each task weighted by its worth to the user.
    """

    def __init__(self, worth: Worth, width: int, rate: float) -> None:
        super().__init__()
        self.worth = worth
        self.level = nn.Linear(width, 1)
        self.slope = nn.Parameter(torch.tensor(1.0))
        with torch.no_grad():
            self.level.bias.fill_(math.log(rate / (1 - rate)))

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
    """The maximum a posteriori model of logged satisfaction, point in time.

    Binary cross-entropy plus the prior of `CredibleWorth`. L-BFGS over all rows, at most `steps`
    iterations, needs no learning rate for so few coefficients. In float64: float32 ends the
    search before the shared coefficients have converged.
    """
    torch.manual_seed(seed)
    worth = CredibleWorth(observed.width, observed.rates, start)
    model = Satisfaction(worth, observed.width, float(log.satisfied.mean()))
    users, sessions = training_rows(log, first)
    values = observed.values[users, sessions].double()
    beyond = (log.means[users, sessions] - observed.usual[users, sessions])[:, None].double()
    satisfied = log.satisfied[users, sessions].double()
    optimiser = torch.optim.LBFGS(
        model.double().parameters(),
        max_iter=steps,
        history_size=20,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = model(values, beyond)[:, 0]
        likelihood = functional.binary_cross_entropy_with_logits(logits, satisfied)
        total = likelihood + worth.negative_log_prior() / len(users)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return model.float().eval().requires_grad_(False)
