"""GRADE: each user's own fusion weights. This docstring is its model card.

Paper: GRADE (arXiv 2510.07919); its full text was not at hand, its architecture figure was.

What it is: a small network (about 30k parameters) from what may be observed of a user (the
profile, and the user's own earlier feedback, see `grade_log`) to a Dirichlet over weight
vectors. Serving ranks by the posterior mean; exploring serves a sample and logs its density.

Learned in two stages (`grade_training`): listwise by LambdaLoss on logged actions, then
critic-free and group-relative: groups of weight vectors drawn for one user and pool, each
with a reward, each judged against its own group's mean. Reward = sparse posterior feedback
(what the user truly answered to the vector that was served) + dense prior (a model's
expectation for every vector drawn) + format (weights that are weights); a KL term keeps
the policy near the first stage.

Kept: Dirichlet exploration, the two stages, the three rewards, the KL. Ours: the dense
prior begins as predicted engagement and is corrected by posterior feedback
(`grade_rewards`); the paper's own prior could not be read.

Served: the ranker holds a policy (`network.Ranker.weights`) over the user's features, taken
point in time, and fuses P(action) as ratios to each action's population rate; `fusion`
learns it from the loop's slates with the same two stages. Where serving explores it draws
from the same Dirichlet (`dirichlet`, without torch), and the vector with its density comes
back in the feedback. `grade_log`, `grade_rewards`,
`grade_training` and `grade_rivals` are the form that is judged offline.

Judged: `python -m benchmarks fusion`, in worlds whose truth is known: .93 of what is
reachable in the headline world, .88 where feedback answers half as much. Most of that is the
dense prior's (`grade_worth`): served alone it does as well, and the group stage then adds
nothing that could be measured. Figures in benchmarks/results/fusion.json, reasons in
docs/worlds/ranking.md. The served policy's prior is not yet of that form: its users' own
statistics are other columns (`fusion`).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional

WIDTH = 150  # about 30k parameters at 30 observables
LEAST_ALPHA = 0.05  # keeps every density finite
START_CONCENTRATION = 40.0


class FusionPolicy(nn.Module):
    """Observables -> Dirichlet over T weights.

    start: float [T], on the simplex: the weights of everybody before anything is learned.
    Non-finite observables count as unknown (0): weights are on the simplex whatever comes.
    """

    def __init__(self, width: int, start: torch.Tensor) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(width, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(),
        )  # fmt: skip
        self.direction = nn.Linear(WIDTH, len(start))
        self.certainty = nn.Linear(WIDTH, 1)
        with torch.no_grad():
            self.direction.weight.mul_(0.1)
            self.certainty.weight.mul_(0.1)
            self.certainty.bias.fill_(math.log(math.expm1(START_CONCENTRATION)))
        self.begin_at(start)

    def forward(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, D] -> alpha float32 [N, T], positive."""
        hidden = self.body(torch.nan_to_num(observed, 0.0, 0.0, 0.0).clamp(-10, 10))
        total = functional.softplus(self.certainty(hidden)).clamp(1.0, 500.0)
        alpha: torch.Tensor = total * self.direction(hidden).softmax(-1) + LEAST_ALPHA
        return alpha

    @property
    def reads(self) -> nn.Linear:
        """The layer that reads the observables."""
        first = self.body[0]
        assert isinstance(first, nn.Linear)
        return first

    def begin_at(self, start: torch.Tensor) -> None:
        """Everybody's weights begin at `start` [T], on the simplex; what was learned is dropped."""
        with torch.no_grad():
            self.direction.bias.copy_((start / start.sum()).clamp_min(1e-4).log())

    @torch.no_grad()
    def mean(self, observed: torch.Tensor) -> torch.Tensor:
        """float32 [N, T]: the weights that are served."""
        alpha = self(observed)
        return torch.as_tensor(alpha / alpha.sum(-1, keepdim=True))

    def draw(self, head: torch.Tensor, group: int, generator: torch.Generator) -> torch.Tensor:
        """What `forward` gave [N, T] -> float32 [N, group, T] weight vectors."""
        wide = head.detach().repeat_interleave(group, 0)
        return draw_dirichlet(wide, generator).view(len(head), group, -1)

    def density(self, head: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """float32 [N, G]: log density of drawn [N, G, T]."""
        return log_density(head[:, None], drawn)

    def divergence(self, head: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """float32 [N]: KL(this || reference)."""
        ours = Dirichlet(head, validate_args=False)
        return torch.as_tensor(kl_divergence(ours, Dirichlet(reference, validate_args=False)))

    def knows_logged_density(self) -> bool:
        """Whether densities logged with Dirichlet exploration compare with this one's."""
        return True

    def frozen(self) -> FusionPolicy:
        twin = copy.deepcopy(self)
        for parameter in twin.parameters():
            parameter.requires_grad_(False)
        return twin


def draw_dirichlet(alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A sample per row, never on the border, where the density has no logarithm."""
    gammas = torch._standard_gamma(alpha.contiguous(), generator=generator).clamp_min(1e-6)
    weights = (gammas / gammas.sum(-1, keepdim=True)).clamp_min(1e-5)
    return weights / weights.sum(-1, keepdim=True)


def log_density(alpha: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    density = Dirichlet(alpha, validate_args=False).log_prob(weights)  # type: ignore[no-untyped-call]
    return torch.as_tensor(density)


def group_advantage(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards [..., G] against their own group: mean 0, unit deviation; no critic.

    A group of equal rewards says nothing and gets zeros, as does one of a single member.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    scale = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(scale > 1e-6, centred / scale.clamp_min(1e-6), torch.zeros_like(centred))
