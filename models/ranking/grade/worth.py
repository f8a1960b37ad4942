"""The worth of each task to a user: observables -> a vector on the simplex.

Knows observables. Does not know slates, rewards or policies: `rewards` fits a worth on logged
satisfaction, and the policy is trained on its expectation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from models.ranking.grade.logs import OwnStatistics

# Gaussian priors, as precisions (1 / variance) of the coefficients. Chosen on validation users
# of seeds 0 and 1 of the ranking worlds; a third or three times as much changes little.
FREE_PRECISION = 2000.0
OWN_PRECISION = 8.0
BASE_PRECISION = 200.0


class Worth(nn.Module, ABC):
    """Observables float32 [N, D] -> worth float32 [N, T], on the simplex.

    start [T], on the simplex: every user's worth before training.
    """

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.start_log_worth = nn.Buffer(start.log())

    @abstractmethod
    def log_worth_gain(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, T]: what the observables add to log worth."""

    def forward(self, observed: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor((self.start_log_worth + self.log_worth_gain(observed)).softmax(-1))


class FreeWorth(Worth):
    """Any observables: linear plus a small MLP. For signals that are strong enough."""

    def __init__(self, width: int, start: torch.Tensor) -> None:
        super().__init__(start)
        self.linear = nn.Linear(width, len(start))
        self.mlp = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(width, 32), nn.GELU(), nn.Linear(32, len(start))
        )

    def log_worth_gain(self, observed: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.linear(observed) + self.mlp(observed))


class CredibleWorth(Worth):
    """A task's own statistics determine its worth, weighted by their evidence.

    Satisfaction is one binary outcome a session: a free map from observables to worths has
    hundreds of coefficients and fits its noise. Here each kind of own statistic has one
    coefficient that tasks share, from which a task's own may depart (OWN_PRECISION); all other
    columns are linear with a strong prior at 0 (FREE_PRECISION). Statistics are shrunk as in
    credibility theory (Buehlmann and Straub, ASTIN Bulletin 1970; kappa learned): links by
    n / (n + kappa) of their n sessions, action rates as gamma-Poisson means,
    (actions + kappa) / (expected + kappa), so that few orders weigh less than many plays.
    """

    def __init__(self, width: int, rates: torch.Tensor, start: torch.Tensor) -> None:
        super().__init__(start)
        self.rates = nn.Buffer(rates)
        self.shared = nn.Parameter(torch.zeros(3, 1))
        self.own = nn.Parameter(torch.zeros(3, len(start)))
        self.base = nn.Parameter(torch.zeros(len(start)))
        self.free = nn.Linear(width, len(start), bias=False)
        self.log_sessions = nn.Parameter(torch.tensor(100.0).log())
        self.log_actions = nn.Parameter(torch.tensor(10.0).log())
        with torch.no_grad():
            self.free.weight.zero_()

    def log_worth_gain(self, observed: torch.Tensor) -> torch.Tensor:
        own = ((self.shared + self.own) * self._statistics(observed)).sum(-2)
        return torch.as_tensor(self.base + own + self.free(observed))

    def _statistics(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, T]: links, recent links and action rates, each shrunk."""
        known, kappa = OwnStatistics.of(observed, self.rates), self.log_actions.exp()
        # A link is in deviations, which grow with sqrt(n): its mean is link / sqrt(n).
        link = 10 * known.link * known.sessions.sqrt()
        link = link / (known.sessions + self.log_sessions.exp())
        expected = known.sessions * self.rates
        rate = ((known.actions + kappa) / (expected + kappa)).log()
        return torch.stack([link, known.fresh, rate], -2)

    def negative_log_prior(self) -> torch.Tensor:
        """float32 []: minus the log density of the coefficients under their prior."""
        priors = (
            (self.free.weight, FREE_PRECISION),
            (self.own, OWN_PRECISION),
            (self.base, BASE_PRECISION),
        )
        return torch.stack(
            [0.5 * precision * values.square().sum() for values, precision in priors]
        ).sum()
