"""What each task is worth to a user: observables -> a vector on the simplex.

Knows observables. Does not know slates, rewards or policies: `grade_rewards` fits a worth on
logged satisfaction, and the policy learns from what it expects.
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

    begun [T], on the simplex: everybody's worth before anything is learned.
    """

    def __init__(self, begun: torch.Tensor) -> None:
        super().__init__()
        self.begun = nn.Buffer(begun.log())

    @abstractmethod
    def told(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, T]: what the observables add to log worth."""

    def forward(self, observed: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor((self.begun + self.told(observed)).softmax(-1))


class FreeWorth(Worth):
    """Any observables: linear, and a little bent. For a signal that is strong enough."""

    def __init__(self, width: int, begun: torch.Tensor) -> None:
        super().__init__(begun)
        self.linear = nn.Linear(width, len(begun))
        self.bent = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(width, 32), nn.GELU(), nn.Linear(32, len(begun))
        )

    def told(self, observed: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.linear(observed) + self.bent(observed))


class CredibleWorth(Worth):
    """A task's own statistics speak for that task, by how much stands behind them.

    Satisfaction is a coin a session: a free map from observables to worths has hundreds of
    coefficients and fits its noise. Here each kind of own statistic has one coefficient that
    tasks share, from which a task's own may depart (OWN_PRECISION); all else is linear and
    held near nothing (FREE_PRECISION). Statistics are believed as credibility theory says
    (Buehlmann and Straub, ASTIN Bulletin 1970; kappa learned): links by n / (n + kappa) of
    the sessions behind them, action rates as gamma-Poisson means,
    (actions + kappa) / (expected + kappa), so that few orders say less than many plays.
    """

    def __init__(self, width: int, rates: torch.Tensor, begun: torch.Tensor) -> None:
        super().__init__(begun)
        self.rates = nn.Buffer(rates)
        self.shared = nn.Parameter(torch.zeros(3, 1))
        self.own = nn.Parameter(torch.zeros(3, len(begun)))
        self.base = nn.Parameter(torch.zeros(len(begun)))
        self.free = nn.Linear(width, len(begun), bias=False)
        self.log_sessions = nn.Parameter(torch.tensor(100.0).log())
        self.log_actions = nn.Parameter(torch.tensor(10.0).log())
        with torch.no_grad():
            self.free.weight.zero_()

    def told(self, observed: torch.Tensor) -> torch.Tensor:
        spoken = ((self.shared + self.own) * self._statistics(observed)).sum(-2)
        return torch.as_tensor(self.base + spoken + self.free(observed))

    def _statistics(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, 3, T]: links, links of late, action rates, each as far as believed."""
        known, kappa = OwnStatistics.of(observed, self.rates), self.log_actions.exp()
        # a link is told in deviations, which grow with sqrt(n): its mean is link / sqrt(n)
        link = 10 * known.link * known.sessions.sqrt()
        link = link / (known.sessions + self.log_sessions.exp())
        expected = known.sessions * self.rates
        rate = ((known.actions + kappa) / (expected + kappa)).log()
        return torch.stack([link, known.fresh, rate], -2)

    def improbability(self) -> torch.Tensor:
        """float32 []: minus the log density of the coefficients before any feedback."""
        priors = (
            (self.free.weight, FREE_PRECISION),
            (self.own, OWN_PRECISION),
            (self.base, BASE_PRECISION),
        )
        return torch.stack([0.5 * given * values.square().sum() for values, given in priors]).sum()
