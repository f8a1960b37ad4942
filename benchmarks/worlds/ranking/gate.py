"""The gate of a ranking world: how much personal weights can gain, and how much of it is reachable.

Knows the truth, not the methods. Choose a world's constants by it alone, before any method is run:
`python -m benchmarks.worlds.ranking.gate`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.worlds.ranking.bounds import best_static, explained, regress_truth
from benchmarks.worlds.ranking.config import WORLDS, RankingWorld
from benchmarks.worlds.ranking.logs import simulate_log
from benchmarks.worlds.ranking.pools import PoolEvaluator, PoolMaker
from benchmarks.worlds.ranking.population import Population, populate
from models.ranking.grade.logs import FusionLog, Observables

STATIC_TRIALS = 100


@dataclass(frozen=True)
class DrawnWorld:
    """One drawn world: users, the log, the evaluators of validation and test users."""

    world: RankingWorld
    population: Population
    log: FusionLog
    observed: Observables
    valid: PoolEvaluator
    test: PoolEvaluator
    static: torch.Tensor  # float32 [T]: best static weights

    @property
    def truth(self) -> torch.Tensor:
        return self.population.utilities(self.world.size.sessions)


@dataclass(frozen=True)
class Gate:
    """spread: mean 1/2 |w* - mean w*|_1; correlation: of tasks within pools; r2: of w* given
    the observables; gap: oracle over best static, relative; reachable: share of the gap that
    a regressor of w* on the observables earns; effect: P(satisfied) one deviation of
    utility up minus one down; play_lift: CTR of the logging policy over random's."""

    spread: float
    correlation: float
    r2: float
    gap: float
    reachable: float
    effect: float
    play_lift: float


def draw(world: RankingWorld, seed: int, pools: int = 20) -> DrawnWorld:
    population, maker, size = populate(world, seed), PoolMaker.of(world), world.size
    log = simulate_log(population, maker, seed)
    valid_users = torch.arange(size.train_users, size.train_users + size.valid_users)
    test_users = torch.arange(size.train_users + size.valid_users, size.users)
    valid = PoolEvaluator.of(population, maker, valid_users, pools, seed * 31 + 1)
    test = PoolEvaluator.of(population, maker, test_users, pools, seed * 31 + 2)
    start = population.utilities(size.sessions).mean(0)
    static = best_static(valid, start, STATIC_TRIALS, seed)
    return DrawnWorld(world, population, log, Observables.of(log), valid, test, static)


def gate(drawn: DrawnWorld, seed: int, steps: int = 1500) -> Gate:
    truth, now = drawn.truth, drawn.observed.now
    n = drawn.world.size.train_users
    net = regress_truth(now[:n], truth[:n], steps, seed)
    with torch.no_grad():
        predicted = net(now[drawn.test.users]).softmax(-1)
    static = float(drawn.test.utility(drawn.static).mean())
    oracle = float(drawn.test.oracle().mean())
    reached = float(drawn.test.utility(predicted).mean())
    z = drawn.test.served.flatten(0, 1).log()
    z = (z - z.mean(1, keepdim=True)).flatten(0, 1)
    pairs = torch.corrcoef(z.T)[torch.triu_indices(5, 5, 1).unbind()]
    odds, effect = torch.logit(torch.tensor(drawn.world.feedback.rate)), drawn.world.feedback.effect
    can_gain = oracle - static > 1e-3 * static
    return Gate(
        spread=float(0.5 * (truth - truth.mean(0)).abs().sum(-1).mean()),
        correlation=float(pairs.mean()),
        r2=explained(predicted, truth[drawn.test.users]),
        gap=oracle / static - 1,
        reachable=(reached - static) / (oracle - static) if can_gain else 0.0,
        effect=float(torch.sigmoid(odds + effect) - torch.sigmoid(odds - effect)),
        play_lift=drawn.test.actions(torch.tensor(drawn.world.logging.weights))[0],
    )


def main() -> None:
    paths = [Path(p) for p in sys.argv[1:]] or sorted(WORLDS.glob("*.toml"))
    for path in paths:
        world = RankingWorld.load(path)
        figures = asdict(gate(draw(world, 0), 0))
        print(world.name, " ".join(f"{k}={v:.3f}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
