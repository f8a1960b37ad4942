"""Training of the served fusion policy on slates with matured feedback (GRADE's two stages).

Knows the ranker's predictions of a slate's candidates, their actions and slots. Does not know
logs, bundles or gates. README.md describes the rewards.

The ratios are those of predictions that were trained on the same slates' feedback; that
flatters P(action), of all tasks alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.ranking.grade.config import FusionTraining, GroupTraining
from models.ranking.grade.fusion_update import FusionUpdate, WeightGroup, group_relative
from models.ranking.grade.policy import FusionPolicy
from models.ranking.grade.rewards import Satisfaction, format_reward
from models.ranking.grade.train import lambda_loss
from models.ranking.grade.worth import FreeWorth
from models.ranking.ple.data import RankerExamples, slot_examination
from models.ranking.ple.network import KNOWN_COLUMN, Ranker
from models.ranking.ple.tensors import RankerBatch
from models.ranking.ple.train import seeded_torch, split_rows
from models.updates.contract import StepSettings, update_policy
from models.updates.losses import group_advantage
from models.updates.report import UpdateReport

MIN_SLATES = 100  # with an action; fewer leave the policy as it is
MIN_RATE = 0.02  # of an action in slates: one rare order must not decide a policy
_BATCH = 256


@dataclass(frozen=True)
class FusionSlates:
    """G slates of known users with an action, C candidates, T tasks; all float32 but `real`.

    observed [G, D]; ratios [G, C, T]; worth [G, C]: the gain of the actions under the declared
    start; acted [G, C] in {0, 1}; real bool [G, C]; weights [G, T] that were drawn for the slate
    and log_density [G] of the draw, NaN where the policy's mean ranked it.
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

    def take(self, rows: Tensor) -> FusionSlates:
        return FusionSlates(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def fusion_slates(network: Ranker, batch: RankerBatch, examples: RankerExamples) -> FusionSlates:
    """The policy's training data from these slates; `batch` holds their features."""
    with torch.no_grad():
        chunks = split_rows(torch.arange(len(batch)), 512)
        logits = torch.cat([network(*batch.take(rows).inputs())[0] for rows in chunks])
        labels = batch.labels * batch.real.unsqueeze(-1)
        rate = labels[batch.real].mean(0).clamp_min(MIN_RATE)
        looked = torch.from_numpy(slot_examination(examples)[examples.slot].astype(np.float32))
        every = FusionSlates(
            network.user_facts(batch.user_x),
            network.ratios(logits) * batch.real.unsqueeze(-1),
            (labels / rate * network.start).sum(-1) / looked,
            labels.amax(-1),
            batch.real,
            torch.from_numpy(examples.weights),
            torch.from_numpy(examples.log_density),
        )
        known = batch.user_x[:, KNOWN_COLUMN] > 0.5
        return every.take(torch.nonzero(known & (every.worth > 0).any(-1))[:, 0])


def learn_fusion(
    network: Ranker,
    batch: RankerBatch,
    examples: RankerExamples,
    settings: FusionTraining,
    *,
    seed: int,
) -> UpdateReport | None:
    """Trains the network's policy in place; None, and no change, on too few slates.

    Stage one runs only on a policy that was never trained; an update continues from the served
    policy. Both stages are held near their start by a KL term.
    """
    slates = fusion_slates(network, batch, examples)
    if len(slates) < MIN_SLATES:
        return None
    with seeded_torch(seed, settings.threads) as generator:
        policy = network.fusion
        if not network.personal:
            _listwise(policy, slates, settings, generator)
        prior = _fit_prior(network, slates, settings, generator)
        report = _group_relative(policy, prior, slates, settings.group, generator)
    policy.zero_grad(set_to_none=True)
    network.personal.fill_(1.0)
    return report


def order_value(scores: Tensor, worth: Tensor) -> Tensor:
    """NDCG of worth [N, C] >= 0 in the order of scores [N, M, C], best first: [N, M] in [0, 1].

    0 for a slate without worth. Padding must have the lowest scores and worth 0.
    """
    discount = 1 / torch.log2(torch.arange(worth.shape[1], dtype=worth.dtype) + 2)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    gained = worth.unsqueeze(1).expand(scores.shape).gather(-1, order) @ discount
    ideal = worth.sort(-1, descending=True).values @ discount
    return gained / ideal.clamp_min(1e-9).unsqueeze(1)


def _listwise(
    policy: FusionPolicy, slates: FusionSlates, settings: FusionTraining, generator: torch.Generator
) -> None:
    """Stage one: LambdaLoss on the actions, held near the initial policy."""
    initial = policy.frozen()
    sharpness = torch.zeros(1, requires_grad=True)  # else the weights would set the scores' scale

    def loss(part: FusionSlates) -> Tensor:
        alpha = policy(part.observed)
        weights = alpha / alpha.sum(-1, keepdim=True)
        scores = sharpness.exp() * torch.einsum("nct,nt->nc", part.ratios, weights)
        listwise = lambda_loss(scores.masked_fill(~part.real, -1e4), part.worth)
        away = policy.divergence(alpha, initial(part.observed)).mean()
        return listwise / part.real.shape[1] + settings.pull * away

    parameters = [*policy.parameters(), sharpness]
    _minimise(parameters, loss, slates, settings.listwise_steps, settings.rate, generator)


def _fit_prior(
    network: Ranker, slates: FusionSlates, settings: FusionTraining, generator: torch.Generator
) -> Satisfaction:
    """The dense prior: the worth of each task's prediction to each user, from all feedback."""
    rate = float(slates.acted[slates.real].mean().clamp(0.01, 0.99))
    width = slates.observed.shape[1]
    model = Satisfaction(FreeWorth(width, network.start), width, rate)
    scale = slates.worth[slates.acted > 0].mean()

    def loss(part: FusionSlates) -> Tensor:
        logits = model(part.observed, part.ratios - 1)
        weight = torch.where(part.acted > 0, part.worth / scale, 1.0) * part.real
        each = binary_cross_entropy_with_logits(logits, part.acted, reduction="none")
        return (each * weight).sum() / weight.sum().clamp_min(1e-6)

    _minimise(list(model.parameters()), loss, slates, settings.prior_steps, 2e-3, generator, 0.1)
    return model.eval().requires_grad_(False)


def _minimise(
    parameters: list[Tensor],
    loss: Callable[[FusionSlates], Tensor],
    slates: FusionSlates,
    steps: int,
    rate: float,
    generator: torch.Generator,
    decay: float = 1e-2,
) -> None:
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=decay)
    for _ in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss(_sample(slates, _BATCH, generator)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _group_relative(
    policy: FusionPolicy,
    prior: Satisfaction,
    slates: FusionSlates,
    rules: GroupTraining,
    generator: torch.Generator,
) -> UpdateReport:
    """Stage two, in place: each vector relative to its own group, near stage one; no critic."""
    return update_policy(
        FusionUpdate(policy),
        _weight_groups(policy, prior, slates, rules, generator),
        policy.frozen(),
        group_relative(rules),
        StepSettings(rate=rules.rate, decay=1e-2),
    )


def _weight_groups(
    policy: FusionPolicy,
    prior: Satisfaction,
    slates: FusionSlates,
    rules: GroupTraining,
    generator: torch.Generator,
) -> Iterator[WeightGroup]:
    """Groups drawn from the policy as it is when each is asked for."""
    for _ in range(rules.steps):
        part = _sample(slates, rules.batch, generator)
        with torch.no_grad():
            alpha = policy(part.observed)
            drawn = policy.draw(alpha, rules.group, generator)
            drawn, before = with_served(part, drawn, policy.density(alpha, drawn))
            reward = _reward(prior, part, drawn, rules)
            advantage = group_advantage(reward)
        yield WeightGroup(part.observed, drawn, before[..., None], reward, advantage[..., None])


def with_served(part: FusionSlates, drawn: Tensor, old_density: Tensor) -> tuple[Tensor, Tensor]:
    """Replaces member 0 of each group by the vector that ranked the slate, where it was drawn.

    Weight vectors [N, M, T] and log densities [N, M]; the served vector keeps its logged
    density, since the logged feedback is the answer to that vector.
    """
    served = part.log_density.isfinite() & part.weights.isfinite().all(-1)
    drawn, old_density = drawn.clone(), old_density.clone()
    drawn[served, 0] = part.weights[served]
    old_density[served, 0] = part.log_density[served]
    return drawn, old_density


def _reward(prior: Satisfaction, part: FusionSlates, drawn: Tensor, rules: GroupTraining) -> Tensor:
    """float32 [N, M]: reward of weight vectors drawn [N, M, T]."""
    scores = torch.einsum("nct,nmt->nmc", part.ratios, drawn)
    scores = scores.masked_fill(~part.real.unsqueeze(1), -1e4)
    expected = (prior.worth(part.observed).unsqueeze(1) * part.ratios).sum(-1) * part.real
    dense = rules.prior * order_value(scores, expected)
    return dense + rules.posterior * order_value(scores, part.worth) + format_reward(drawn)


def _sample(slates: FusionSlates, count: int, generator: torch.Generator) -> FusionSlates:
    return slates.take(torch.randint(len(slates), (count,), generator=generator))
