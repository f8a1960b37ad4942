"""`python -m benchmarks.served.gate [WORLD.toml ...]`: the margins of worlds, before any model.

Knows worlds and the plain baselines that need no training beyond the replayed stars. Prints for
each world the expected clicks and utility of ten slots, and how much of the users' taste the
replayed ratings reveal: the squared correlation of the true personal part with the personal
part of a factorisation of the replayed ratings.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.report import Report
from benchmarks.served import worlds_of
from benchmarks.served.baselines import factorisation, factorise, popularity, random_scores
from benchmarks.served.stages import top
from benchmarks.served.world import ServedWorld, Size, make
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import MovieLens, load
from streams.contract.clock import HOUR_MS

SEED, SIZE = 0, Size(users=300, newcomers=40, slates=0)


def margins(report: Report, name: str, config: WorldConfig, data: MovieLens) -> None:
    """Adds one world's rows."""
    world = make(config, data, SEED, SIZE)
    fitted = factorise(world, SEED)
    policies = {
        "random": random_scores(world, SEED),
        "popularity": popularity(world),
        "factorisation + log plays": factorisation(world, fitted),
        "oracle by clicks": world.clicks,
        "oracle by utility": world.utility,
    }
    known = len(world.users) - world.newcomers
    revealed = revealed_share(world, fitted.personal(world.users)[:known])
    for policy, scores in policies.items():
        slates = top(scores, world.eligible)
        report.add(
            world=name,
            ranking=policy,
            clicks=float(world.expected(slates, world.clicks)[:known].mean()),
            utility=float(world.expected(slates, world.utility)[:known].mean()),
            taste_revealed=revealed,
        )


def revealed_share(world: ServedWorld, personal: np.ndarray) -> float:
    """Squared correlation of `personal` [K, V] with the true personal part of the first K users."""
    every = np.arange(len(world.items))
    asking = zip(world.users[: len(personal)], world.at_ms // HOUR_MS % 24, strict=False)
    true = [world.truth.taste.personal(int(user), every, int(hour)) for user, hour in asking]
    return float(np.corrcoef(np.ravel(true), personal.ravel())[0, 1] ** 2)


def main(paths: list[str]) -> None:
    data = load()
    report = Report("served gate", {})
    worlds = {Path(p).stem: WorldConfig.load(Path(p)) for p in paths} or worlds_of(None)
    for name, config in worlds.items():
        for share in (config.replay.share, 1.0):
            replay = config.replay.model_copy(update={"share": share})
            stated = config.model_copy(update={"replay": replay})
            margins(report, f"{name}, {share:g} of ratings", stated, data)
    report.show()


if __name__ == "__main__":
    main(sys.argv[1:])
