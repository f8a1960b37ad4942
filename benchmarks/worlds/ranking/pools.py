"""Candidate pools, slates ranked from them, and their true value.

Knows predictions, attention and true value. Everything is relative: a task's P(action)
over its population rate, so that weights compare tasks and not units (predictions of
mismatched scale make weights meaningless).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.worlds.ranking.config import WORLD_TASKS, RankingWorld
from benchmarks.worlds.ranking.population import Population

T = len(WORLD_TASKS)
_MAX_P = 0.98  # of any prediction


def attention(world: RankingWorld) -> torch.Tensor:
    """float32 [K]: P(attended | slot)."""
    return (1.0 + torch.arange(world.size.slate)) ** -world.position.bias


def unit_rates(world: RankingWorld) -> torch.Tensor:
    """float32 [T]: actions per attended random impression."""
    play = world.candidates.random_play_rate / float(attention(world).mean())
    return torch.tensor([play, *(play * share for share in world.candidates.of_plays)])


@dataclass(frozen=True)
class PoolMaker:
    """Draws pools for users. intercepts float32 [T], solved for the stated rates."""

    world: RankingWorld
    intercepts: torch.Tensor
    rates: torch.Tensor

    @classmethod
    def of(cls, world: RankingWorld) -> PoolMaker:
        rates = unit_rates(world)
        grid = torch.linspace(-5, 5, 401)
        mass = torch.exp(-(grid**2) / 2)
        low, high = torch.full((T,), -20.0), torch.full((T,), 20.0)
        for _ in range(50):
            middle = (low + high) / 2
            p = torch.sigmoid(middle[:, None] + world.candidates.deviation * grid)
            below = (p * mass).sum(1) / mass.sum() < rates
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return cls(world, (low + high) / 2, rates)

    def draw(
        self, habit: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """habit [N, T] -> (served, true): float32 [N, C, T] ratios P(action) / population rate."""
        rules, (n, c) = self.world.candidates, (len(habit), self.world.size.candidates)
        shared = torch.randn(n, c, 1, generator=generator)
        own = torch.randn(n, c, T, generator=generator)
        z = np.sqrt(rules.correlation) * shared + np.sqrt(1 - rules.correlation) * own
        odds = self.intercepts + rules.deviation * z + habit[:, None]
        served = self._ratio(odds)
        if rules.noise == 0:
            return served, served
        return served, self._ratio(
            odds + rules.noise * torch.randn(odds.shape, generator=generator)
        )

    def _ratio(self, odds: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(odds).clamp_max(_MAX_P) / self.rates


def item_value(world: RankingWorld, ratios: torch.Tensor, utilities: torch.Tensor) -> torch.Tensor:
    """True value of items: ratios [N, ..., T], utilities [N, T] -> [N, ...].

    Linear where power is 1 and bait 0; otherwise gains saturate, and an item that draws
    plays without being watched costs.
    """
    rules = world.utility
    gains = ratios if rules.power == 1 else ratios**rules.power
    value = torch.einsum("n...t,nt->n...", gains, utilities)
    if rules.bait == 0:
        return value
    return value - rules.bait * (ratios[..., 0] - ratios[..., 1]).clamp_min(0)


def slate_mean(values: torch.Tensor, weights_of_slots: torch.Tensor, dim: int) -> torch.Tensor:
    """Attention-weighted mean along the slots' axis."""
    shape = [1] * values.ndim
    shape[dim] = -1
    return (values * weights_of_slots.view(shape)).sum(dim) / weights_of_slots.sum()


@dataclass(frozen=True)
class PoolEvaluator:
    """Fixed pools of some users, on which all policies are evaluated (common random numbers)."""

    world: RankingWorld
    users: torch.Tensor
    served: torch.Tensor  # float32 [N, R, C, T]
    value: torch.Tensor  # float32 [N, R, C]: true value of each candidate now
    plays: torch.Tensor  # float32 [N, R, C]: true play ratio
    orders: torch.Tensor  # float32 [N, R, C]: true order ratio

    @classmethod
    def of(
        cls, population: Population, maker: PoolMaker, users: torch.Tensor, pools: int, seed: int
    ) -> PoolEvaluator:
        generator = torch.Generator().manual_seed(seed)
        world, size = maker.world, maker.world.size
        habit = population.habit[users].repeat_interleave(pools, 0)
        served, true = maker.draw(habit, generator)
        now = population.utilities(size.sessions)[users].repeat_interleave(pools, 0)
        shape = (len(users), pools, size.candidates)
        value = item_value(world, true, now).view(shape)
        return cls(
            world,
            users,
            served.view(*shape, T),
            value,
            true[..., 0].reshape(shape),
            true[..., 4].reshape(shape),
        )

    def utility(self, weights: torch.Tensor) -> torch.Tensor:
        """float32 [N]: each user's mean true utility under linear fusion, weights [N, T] or [T]."""
        return self._by_score(self._scores(weights), self.value)

    def oracle(self) -> torch.Tensor:
        """float32 [N]: pools ranked by true value itself."""
        return self._by_score(self.value, self.value)

    def actions(self, weights: torch.Tensor) -> tuple[float, float]:
        """(plays, orders): population ratios under linear fusion."""
        scores = self._scores(weights)
        return (
            float(self._by_score(scores, self.plays).mean()),
            float(self._by_score(scores, self.orders).mean()),
        )

    def _scores(self, weights: torch.Tensor) -> torch.Tensor:
        wide = weights.expand(len(self.users), T)
        return torch.einsum("nrct,nt->nrc", self.served, wide)

    def _by_score(self, scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        top = scores.topk(self.world.size.slate, -1).indices
        return slate_mean(values.gather(-1, top), attention(self.world), 2).mean(1)
