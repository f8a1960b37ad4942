"""How the served fusion policy learns from slates with matured feedback (GRADE's two stages).

Knows the ranker's predictions of what was on screen, what was acted on, and where it
stood. Does not know logs, bundles or gates. `grade` is the policy; here is its loop form.

A group of weight vectors is drawn for the user of one slate, its first the one that was
served where that was drawn too (at the density logged then); each re-orders what the user
looked at, and is paid for that order: the *posterior* is the NDCG of what was truly acted
on, each action in units of its own rate over the slot's examination; the *prior* is the
same of what a model of feedback expects, dense where actions are sparse; *format* fines
what is no weight vector. Stage one (LambdaLoss) runs only where nothing was learned yet;
an update goes on from the served policy. Either way KL holds it near what it came from.

The ratios are those of predictions that have seen the same slates' feedback; that flatters
P(action), of all tasks alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.ranking.grade.policy import FusionPolicy, group_advantage
from models.ranking.grade.rewards import Satisfaction, format_reward
from models.ranking.grade.train import GroupTraining, clipped_objective, lambda_loss
from models.ranking.grade.worth import FreeWorth
from models.ranking.ple.data import Examples, examination
from models.ranking.ple.network import KNOWN, Ranker
from models.ranking.ple.tensors import Batch
from models.ranking.ple.train import chunks_of, repeatable

MIN_SLATES = 100  # with an action; fewer leave the policy as it is
LEAST_RATE = 0.02  # of an action in slates: one rare order must not decide a policy
_BATCH = 256


@dataclass(frozen=True)
class FusionTraining:
    """`pull`: of stage one to the declared start, per slate's loss."""

    listwise_steps: int = 80
    prior_steps: int = 120
    pull: float = 0.02
    rate: float = 1e-3
    group: GroupTraining = field(
        default_factory=lambda: GroupTraining(
            steps=80, batch=128, rate=1e-3, kl=0.02, prior=1.0, posterior=1.0
        )
    )
    threads: int = 1


@dataclass(frozen=True)
class Slates:
    """G slates of known users with an action, C candidates, T tasks; all float32 but `real`.

    observed [G, D]; ratios [G, C, T]; worth [G, C]: the declared start's gain of what was
    acted on; acted [G, C] in {0, 1}; real bool [G, C]; weights [G, T] that were drawn for
    the slate and log_density [G] of the draw, NaN where the policy's mean ranked it.
    """

    observed: Tensor
    ratios: Tensor
    worth: Tensor
    acted: Tensor
    real: Tensor
    weights: Tensor
    log_density: Tensor

    def __len__(self) -> int:
        return len(self.observed)

    def take(self, rows: Tensor) -> Slates:
        return Slates(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def slates_of(network: Ranker, batch: Batch, examples: Examples) -> Slates:
    """What the policy may learn from these slates; `batch` holds their features."""
    with torch.no_grad():
        chunks = chunks_of(torch.arange(len(batch)), 512)
        logits = torch.cat([network(*batch.take(rows).inputs())[0] for rows in chunks])
        labels = batch.labels * batch.real.unsqueeze(-1)
        rate = labels[batch.real].mean(0).clamp_min(LEAST_RATE)
        looked = torch.from_numpy(examination(examples)[examples.slot].astype(np.float32))
        every = Slates(
            network.facts(batch.user_x),
            network.ratios(logits) * batch.real.unsqueeze(-1),
            (labels / rate * network.start).sum(-1) / looked,
            labels.amax(-1),
            batch.real,
            torch.from_numpy(examples.weights),
            torch.from_numpy(examples.log_density),
        )
        known = batch.user_x[:, KNOWN] > 0.5
        return every.take(torch.nonzero(known & (every.worth > 0).any(-1))[:, 0])


def learn_fusion(
    network: Ranker, batch: Batch, examples: Examples, settings: FusionTraining, *, seed: int
) -> bool:
    """Teaches `network`'s policy in place; False, and nothing changes, on too few slates."""
    slates = slates_of(network, batch, examples)
    if len(slates) < MIN_SLATES:
        return False
    with repeatable(seed, settings.threads) as generator:
        policy = network.fusion
        if not network.personal:
            _listwise(policy, slates, settings, generator)
        prior = _expectation(network, slates, settings, generator)
        _group_relative(policy, prior, slates, settings.group, generator)
    policy.zero_grad(set_to_none=True)
    network.personal.fill_(1.0)
    return True


def order_value(scores: Tensor, worth: Tensor) -> Tensor:
    """NDCG of worth [N, C] >= 0 in the order of scores [N, M, C], best first: [N, M] in [0, 1].

    0 where a slate is worth nothing. Padding must have the lowest scores and no worth.
    """
    discount = 1 / torch.log2(torch.arange(worth.shape[1], dtype=worth.dtype) + 2)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    gained = worth.unsqueeze(1).expand(scores.shape).gather(-1, order) @ discount
    ideal = worth.sort(-1, descending=True).values @ discount
    return gained / ideal.clamp_min(1e-9).unsqueeze(1)


def _listwise(
    policy: FusionPolicy, slates: Slates, settings: FusionTraining, generator: torch.Generator
) -> None:
    """Stage one: LambdaLoss on what was acted on, held near where the policy began."""
    begun = policy.frozen()
    sharpness = torch.zeros(1, requires_grad=True)  # else weights bend to set the scores' scale

    def loss(part: Slates) -> Tensor:
        alpha = policy(part.observed)
        weights = alpha / alpha.sum(-1, keepdim=True)
        scores = sharpness.exp() * torch.einsum("nct,nt->nc", part.ratios, weights)
        listwise = lambda_loss(scores.masked_fill(~part.real, -1e4), part.worth)
        away = policy.divergence(alpha, begun(part.observed)).mean()
        return listwise / part.real.shape[1] + settings.pull * away

    parameters = [*policy.parameters(), sharpness]
    _descend(parameters, loss, slates, settings.listwise_steps, settings.rate, generator)


def _expectation(
    network: Ranker, slates: Slates, settings: FusionTraining, generator: torch.Generator
) -> Satisfaction:
    """The dense prior: what each task's prediction is worth to each user, from all feedback."""
    rate = float(slates.acted[slates.real].mean().clamp(0.01, 0.99))
    width = slates.observed.shape[1]
    model = Satisfaction(FreeWorth(width, network.start), width, rate)
    scale = slates.worth[slates.acted > 0].mean()

    def loss(part: Slates) -> Tensor:
        logits = model(part.observed, part.ratios - 1)
        weight = torch.where(part.acted > 0, part.worth / scale, 1.0) * part.real
        each = binary_cross_entropy_with_logits(logits, part.acted, reduction="none")
        return (each * weight).sum() / weight.sum().clamp_min(1e-6)

    _descend(list(model.parameters()), loss, slates, settings.prior_steps, 2e-3, generator, 0.1)
    return model.eval().requires_grad_(False)


def _descend(
    parameters: list[Tensor],
    loss: Callable[[Slates], Tensor],
    slates: Slates,
    steps: int,
    rate: float,
    generator: torch.Generator,
    decay: float = 1e-2,
) -> None:
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=decay)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss(_some(slates, _BATCH, generator)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _group_relative(
    policy: FusionPolicy,
    prior: Satisfaction,
    slates: Slates,
    rules: GroupTraining,
    generator: torch.Generator,
) -> None:
    """Stage two, in place: critic-free, each vector against its own group, near stage one."""
    reference = policy.frozen()
    optimiser = torch.optim.AdamW(policy.parameters(), rules.rate, weight_decay=1e-2)
    for _ in range(rules.steps):
        part = _some(slates, rules.batch, generator)
        with torch.no_grad():
            alpha = policy(part.observed)
            drawn = policy.draw(alpha, rules.group, generator)
            drawn, before = with_served(part, drawn, policy.density(alpha, drawn))
            advantage = group_advantage(_reward(prior, part, drawn, rules))
        for _ in range(2):
            loss = clipped_objective(
                policy, reference, part.observed, drawn, before, advantage, rules
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()


def with_served(part: Slates, drawn: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Weight vectors [N, M, T] and their log densities [N, M], member 0 of each group being
    what the slate was served with, at the density that it was drawn at then, where it was
    drawn: what the crowd answered is the answer to that vector. Elsewhere nothing changes."""
    served = part.log_density.isfinite() & part.weights.isfinite().all(-1)
    drawn, before = drawn.clone(), before.clone()
    drawn[served, 0] = part.weights[served]
    before[served, 0] = part.log_density[served]
    return drawn, before


def _reward(prior: Satisfaction, part: Slates, drawn: Tensor, rules: GroupTraining) -> Tensor:
    """float32 [N, M] of weight vectors drawn [N, M, T]."""
    scores = torch.einsum("nct,nmt->nmc", part.ratios, drawn)
    scores = scores.masked_fill(~part.real.unsqueeze(1), -1e4)
    expected = (prior.worth(part.observed).unsqueeze(1) * part.ratios).sum(-1) * part.real
    dense = rules.prior * order_value(scores, expected)
    return dense + rules.posterior * order_value(scores, part.worth) + format_reward(drawn)


def _some(slates: Slates, count: int, generator: torch.Generator) -> Slates:
    return slates.take(torch.randint(len(slates), (count,), generator=generator))
