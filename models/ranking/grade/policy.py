"""GRADE's policy network: what is known of a user -> a Dirichlet over fusion weights.

The model card is README.md. Knows tensors. Does not know logs, rewards or training.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional

WIDTH = 150  # about 30k parameters at 30 observables
MIN_ALPHA = 0.05  # keeps every density finite
START_CONCENTRATION = 40.0


class FusionPolicy(nn.Module):
    """Observables -> Dirichlet over T weights.

    start: float [T], on the simplex: every user's weights before training. Observables that
    are not finite count as unknown (0), so the weights are always on the simplex.
    """

    def __init__(self, width: int, start: torch.Tensor) -> None:
        super().__init__()
        layers = (nn.Linear(width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.body = nn.Sequential(*layers)
        self.direction = nn.Linear(WIDTH, len(start))
        self.certainty = nn.Linear(WIDTH, 1)
        with torch.no_grad():
            self.direction.weight.mul_(0.1)
            self.certainty.weight.mul_(0.1)
            self.certainty.bias.fill_(math.log(math.expm1(START_CONCENTRATION)))
        self.set_start_weights(start)

    def forward(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, D] -> alpha float32 [N, T], positive."""
        hidden = self.body(torch.nan_to_num(observed, 0.0, 0.0, 0.0).clamp(-10, 10))
        total = functional.softplus(self.certainty(hidden)).clamp(1.0, 500.0)
        alpha: torch.Tensor = total * self.direction(hidden).softmax(-1) + MIN_ALPHA
        return alpha

    @property
    def input_layer(self) -> nn.Linear:
        """The layer that reads the observables."""
        first = self.body[0]
        assert isinstance(first, nn.Linear)
        return first

    def set_start_weights(self, start: torch.Tensor) -> None:
        """Sets every user's weights to `start` [T], on the simplex."""
        with torch.no_grad():
            self.direction.bias.copy_((start / start.sum()).clamp_min(1e-4).log())

    @torch.no_grad()
    def mean(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, D] -> [N, T]: the served weights, the mean of the Dirichlet."""
        alpha = self(observed)
        return torch.as_tensor(alpha / alpha.sum(-1, keepdim=True))

    def draw(self, head: torch.Tensor, group: int, generator: torch.Generator) -> torch.Tensor:
        """alpha from `forward` [N, T] -> float32 [N, group, T] weight vectors."""
        wide = head.detach().repeat_interleave(group, 0)
        return sample_dirichlet(wide, generator).view(len(head), group, -1)

    def density(self, head: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """float32 [N, G]: log density of drawn [N, G, T]."""
        return log_density(head[:, None], drawn)

    def divergence(self, head: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """float32 [N]: KL(this || reference)."""
        ours = Dirichlet(head, validate_args=False)
        return torch.as_tensor(kl_divergence(ours, Dirichlet(reference, validate_args=False)))

    def knows_logged_density(self) -> bool:
        """Whether densities logged under Dirichlet exploration are comparable with its own."""
        return True

    def frozen(self) -> FusionPolicy:
        """A copy without gradients."""
        twin = copy.deepcopy(self)
        for parameter in twin.parameters():
            parameter.requires_grad_(False)
        return twin


def sample_dirichlet(alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A sample per row of alpha [N, T], off the border, where the log density is infinite."""
    gammas = torch._standard_gamma(alpha.contiguous(), generator=generator).clamp_min(1e-6)
    weights = (gammas / gammas.sum(-1, keepdim=True)).clamp_min(1e-5)
    return weights / weights.sum(-1, keepdim=True)


def log_density(alpha: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """log Dirichlet(weights | alpha): [.., T], [.., T] -> [..]."""
    density = Dirichlet(alpha, validate_args=False).log_prob(weights)  # type: ignore[no-untyped-call]
    return torch.as_tensor(density)
