"""One world and one seed: every policy's slates, judged by the planted truth.

Knows the order of the steps. Does not know bars or tables.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.served import baselines, observables
from benchmarks.served.outcome import Outcome, record
from benchmarks.served.pipeline import RELEASE, Passed, ServedState, serve
from benchmarks.served.stages import rows_of, stage_slates, top
from benchmarks.served.world import SLOTS, ServedWorld, Size, make
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import MovieLens
from models.ranking.ple.config import RankerConfig
from serving.pipeline.query import Query
from serving.pipeline.runner import Pipeline

RANDOM, POPULARITY, KNN = "random", "popularity", "item-kNN over plays"
FACTORISATION, LAMBDARANK = "factorisation + log plays", "LightGBM lambdarank"
SERVED, BEST = "served ranker", "best policy on observables"
LIKING = "liking factors"
ORACLE_CLICKS, ORACLE = "oracle by clicks", "oracle by utility"
PLAIN = (POPULARITY, KNN, FACTORISATION, LAMBDARANK)


def measure(
    into: Outcome,
    config: WorldConfig,
    data: MovieLens,
    seed: int,
    size: Size,
    ranker: RankerConfig,
) -> None:
    """Adds one seed of one world to the outcome; prints each step when it begins."""
    step = _Steps(seed)
    step("the world")
    world = make(config, data, seed, size)
    with tempfile.TemporaryDirectory() as folder:
        step("folding the log and training the ranker")
        served = serve(world.log, world.items, Path(folder), ranker, seed)
        step(f"{len(world.users)} requests")
        passed = answers(world, served, served.pipeline(), seed)
        step("baselines and the best policy on observables")
        scores, best = _scores(world, served, ranker, seed)
    slates = {name: top(score, world.eligible) for name, score in scores.items()}
    slates[SERVED] = np.array([rows_of(world, each.slate) for each in passed])
    for name in slates:
        _judge(into, world, name, slates[name])
    _stages(into, world, passed, best, seed)
    step(f"done: utility {into.utility[SERVED][-1].mean():.3f}")


class _Steps:
    """Prints what a seed does and how long it has taken, s."""

    def __init__(self, seed: int) -> None:
        self._seed, self._start_s = seed, time.monotonic()

    def __call__(self, what: str) -> None:
        taken_s = time.monotonic() - self._start_s
        print(f"  seed {self._seed}, {taken_s:.0f} s: {what}", flush=True)


def answers(world: ServedWorld, served: ServedState, pipeline: Pipeline, seed: int) -> list[Passed]:
    """One request of every user."""
    asking = enumerate(zip(world.user_ids, world.at_ms.tolist(), strict=True))
    return [
        served.answer(pipeline, user_id, at_ms, seed * 100_003 + number, SLOTS)
        for number, (user_id, at_ms) in asking
    ]


def _scores(
    world: ServedWorld, served: ServedState, ranker: RankerConfig, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """float [U, V] of every policy but the served one, and of the best policy alone."""
    fitted = baselines.factorise(world, seed)
    knn = baselines.item_knn(world)
    inputs = observables.ranker_inputs(world, served)
    liking = _liking(world, served)
    plain = observables.plain_scores(world, served, knn, fitted, liking)
    best = observables.best_policy(world, inputs, plain, folds=2, seed=seed)
    lambdarank = baselines.LambdaRank.fit(world, ranker, seed)
    scores = {
        RANDOM: baselines.random_scores(world, seed),
        POPULARITY: baselines.popularity(world),
        KNN: knn,
        FACTORISATION: baselines.factorisation(world, fitted),
        LAMBDARANK: np.array([lambdarank.scores(each) for each in inputs]),
        BEST: best,
        LIKING: liking,
        ORACLE_CLICKS: world.clicks,
        ORACLE: world.utility,
    }
    return scores, best


def _liking(world: ServedWorld, served: ServedState) -> np.ndarray:
    """float64 [U, V]: by the factors of the ranker's bundle alone."""
    scores = np.zeros(world.eligible.shape)
    for row, (user_id, at_ms) in enumerate(zip(world.user_ids, world.at_ms.tolist(), strict=True)):
        user = served.deps.store.read("user", [user_id], at_ms)
        query = Query("r", "feed", user_id, SLOTS, at_ms, 0, release=RELEASE, user=user)
        liking = served.deps.likings.of(query)
        assert liking is not None
        scores[row] = liking.scores_of(world.item_ids)
    return scores


def _judge(into: Outcome, world: ServedWorld, name: str, slates: np.ndarray) -> None:
    known = len(world.users) - world.newcomers
    utility = world.expected(slates, world.utility)
    record(into.clicks, name, world.expected(slates, world.clicks)[:known])
    record(into.utility, name, utility[:known])
    record(into.newcomers, name, utility[known:])
    cold = world.cold_items[np.maximum(slates, 0)] & (slates >= 0)
    record(into.cold_items, name, cold[:known].mean(axis=1))
    gained = np.where(world.cold_items, world.utility, 0.0)
    record(into.cold_utility, name, world.expected(slates, gained)[:known])


def _stages(
    into: Outcome, world: ServedWorld, passed: list[Passed], best: np.ndarray, seed: int
) -> None:
    """Stages of users with a history."""
    known = len(world.users) - world.newcomers
    found = stage_slates(world, passed, best, seed)
    for name, slates in found.slates.items():
        record(into.stages, name, world.expected(slates, world.utility)[:known])
    for name, values in found.recall.items():
        record(into.figures, name, values[:known])
    counts = {
        "candidates": [len(each.candidates) for each in passed],
        "scored": [len(each.kept) for each in passed],
        "stages that failed": [each.fallbacks for each in passed],
    }
    for name, numbers in counts.items():
        record(into.figures, name, np.array(numbers, float)[:known])
