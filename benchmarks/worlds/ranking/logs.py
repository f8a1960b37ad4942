"""The platform's log in a ranking world: explored static weights and users' actions.

Knows the truth that users act by, and returns only the log.
"""

from __future__ import annotations

import torch
from torch.distributions import Dirichlet

from benchmarks.worlds.ranking.config import RankingWorld
from benchmarks.worlds.ranking.pools import PoolMaker, attention, item_value, slate_mean
from benchmarks.worlds.ranking.population import Population
from models.ranking.grade.logs import FusionLog


def simulate_log(population: Population, maker: PoolMaker, seed: int) -> FusionLog:
    """Serves every user every session; the same arguments give the same log."""
    world = maker.world
    generator = torch.Generator().manual_seed(seed * 7919 + 11)
    spread = _utility_scale(population, maker, seed)
    rows = [_session(population, maker, s, spread, generator) for s in range(world.size.sessions)]
    stacked = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
    means, weights, density, satisfied, acted, pools, shown, labels = stacked
    return FusionLog(
        population.profile, means, weights, density, satisfied, acted, pools, shown, labels,
        attention(world),
    )  # fmt: skip


def _session(
    population: Population,
    maker: PoolMaker,
    session: int,
    spread: tuple[float, float],
    generator: torch.Generator,
) -> tuple[torch.Tensor, ...]:
    world, attended = maker.world, attention(maker.world)
    learners, users = world.size.train_users, world.size.users
    served, true = maker.draw(population.habit, generator)
    weights, density = _explore(world, users, generator)
    shown = _slate(world, torch.einsum("nct,nt->nc", served, weights), generator)
    wide = shown[..., None].expand(-1, -1, served.shape[-1])
    seen, real = served.gather(1, wide), true.gather(1, wide)
    now = population.utilities(session)
    utility = slate_mean(item_value(world, real, now), attended, 1)
    odds = _log_odds(world.feedback.rate)
    p = torch.sigmoid(odds + world.feedback.effect * (utility - spread[0]) / spread[1])
    satisfied = torch.bernoulli(p, generator=generator)
    chance = (real * maker.rates).clamp_max(1) * attended[:, None]
    labels = torch.rand(chance.shape, generator=generator) < chance
    return (
        slate_mean(seen, attended, 1), weights, density, satisfied, labels.sum(1).float(),
        served[:learners].half(), shown[:learners].to(torch.uint8), labels[:learners],
    )  # fmt: skip


def _explore(
    world: RankingWorld, users: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    alpha = torch.tensor(world.logging.weights) * world.logging.concentration
    wide = alpha.expand(users, -1).contiguous()
    gammas = torch._standard_gamma(wide, generator=generator).clamp_min(1e-6)
    weights = gammas / gammas.sum(-1, keepdim=True)
    weights = weights / weights.sum(-1, keepdim=True)
    density = Dirichlet(alpha, validate_args=False).log_prob(weights)  # type: ignore[no-untyped-call]
    return weights, density


def _slate(world: RankingWorld, scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """int64 [N, K]: the best by score, a stated share of slots given to others at random."""
    k, c = world.size.slate, world.size.candidates
    order = scores.argsort(-1, descending=True)
    random = torch.rand(len(scores), k, generator=generator) < world.logging.random_slots
    others = k + torch.rand(len(scores), c - k, generator=generator).argsort(-1)[:, :k]
    places = torch.arange(k).expand(len(scores), k)
    spare = min(k, c - k)
    chosen = places.clone()
    chosen[:, :spare] = torch.where(random[:, :spare], others[:, :spare], places[:, :spare])
    return order.gather(1, chosen)


def _utility_scale(population: Population, maker: PoolMaker, seed: int) -> tuple[float, float]:
    """Mean and deviation of slate utility under logging: what one deviation means."""
    world = maker.world
    generator = torch.Generator().manual_seed(seed * 7919 + 10)
    served, true = maker.draw(population.habit, generator)
    weights, _ = _explore(world, len(served), generator)
    top = torch.einsum("nct,nt->nc", served, weights).topk(world.size.slate, -1).indices
    real = true.gather(1, top[..., None].expand(-1, -1, true.shape[-1]))
    value = slate_mean(item_value(world, real, population.utilities(0)), attention(world), 1)
    return float(value.mean()), float(value.std().clamp_min(1e-6))


def _log_odds(rate: float) -> float:
    return float(torch.logit(torch.tensor(rate)))
