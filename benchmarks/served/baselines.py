"""Plain baselines of the served feed: a score per item for every judged user.

Knows the log, the replayed stars and scores. Does not know the planted truth, and shares no
code with the world that draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm as lgb
import numpy as np

from benchmarks.served.world import ServedWorld
from models.ranking.ple.config import RankerConfig
from models.ranking.ple.data import RankerExamples, impression_examples, unlogged_examples
from models.ranking.ple.tensors import build_batch, build_vocabulary
from models.ranking.tasks import SHIPPED_TASKS

_FACTORS, _SWEEPS, _RIDGE = 8, 8, 8.0
_LOG_PLAYS = 0.15  # the weight of log plays beside predicted stars
_NEIGHBOURS = 50
_NEGATIVES = 5  # sampled a replayed interaction, one of them from the whole catalogue


def random_scores(world: ServedWorld, seed: int) -> np.ndarray:
    """float64 [U, V]"""
    return np.random.default_rng([seed, 31]).random(world.eligible.shape)


def log_plays(world: ServedWorld) -> np.ndarray:
    """float64 [V]: log(1 + users who played the item)."""
    return np.asarray(np.log1p(world.plays.sum(axis=0)))


def popularity(world: ServedWorld) -> np.ndarray:
    """float64 [U, V], the same row for every user."""
    return np.broadcast_to(log_plays(world), world.eligible.shape)


def item_knn(world: ServedWorld) -> np.ndarray:
    """float64 [U, V]: the sum of cosines between each item and the user's plays, over each
    item's 50 nearest."""
    norm = np.sqrt(world.plays.sum(axis=0)) + 1e-9
    near = (world.plays.T @ world.plays) / np.outer(norm, norm)
    np.fill_diagonal(near, 0.0)
    least = np.partition(near, -_NEIGHBOURS, axis=1)[:, -_NEIGHBOURS][:, None]
    near = np.where(near >= least, near, 0.0)
    return np.asarray(world.plays[world.users] @ near)


@dataclass(frozen=True)
class Factorisation:
    """Biased matrix factorisation of the replayed stars.

    bias float64 [V]; users [U_all, k]; items [V, k]. Predicted stars without the parts that
    are the same for all items of a user.
    """

    bias: np.ndarray
    users: np.ndarray
    items: np.ndarray

    def personal(self, users: np.ndarray) -> np.ndarray:
        return np.asarray(self.users[users] @ self.items.T)


def factorise(world: ServedWorld, seed: int) -> Factorisation:
    """Alternating least squares over the replayed ratings (Koren et al. 2009)."""
    stars = np.zeros_like(world.plays)
    user_row = world.truth.user_row
    users = [user_row[user] for user in world.ratings["user_id"]]
    items = [world.item_row[item] for item in world.ratings["video_id"]]
    stars[users, items] = world.ratings["rating"].to_numpy()
    known = stars > 0
    mean = stars[known].mean()
    bias = np.where(known, stars - mean, 0).sum(0) / (known.sum(0) + _RIDGE)
    own = np.where(known, stars - mean - bias, 0).sum(1) / (known.sum(1) + _RIDGE)
    left = np.where(known, stars - mean - bias - own[:, None], 0.0)
    item_side = np.random.default_rng([seed, 32]).normal(0, 0.1, (stars.shape[1], _FACTORS))
    for _ in range(_SWEEPS):
        user_side = _ridge_rows(left, known, item_side)
        item_side = _ridge_rows(left.T, known.T, user_side)
    return Factorisation(bias, user_side, item_side)


def _ridge_rows(left: np.ndarray, known: np.ndarray, other: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(left), other.shape[1]))
    penalty = _RIDGE * np.eye(other.shape[1])
    for row in range(len(left)):
        seen = other[known[row]]
        rows[row] = np.linalg.solve(seen.T @ seen + penalty, seen.T @ left[row, known[row]])
    return rows


def factorisation(world: ServedWorld, fitted: Factorisation) -> np.ndarray:
    """float64 [U, V]: predicted stars + 0.15 log plays."""
    scores: np.ndarray = fitted.bias + fitted.personal(world.users)
    return scores + _LOG_PLAYS * log_plays(world)


@dataclass(frozen=True)
class LambdaRank:
    """LightGBM's lambdarank on the examples and features of the served ranker."""

    booster: lgb.Booster

    @classmethod
    def fit(cls, world: ServedWorld, config: RankerConfig, seed: int) -> LambdaRank:
        x, gain, groups = [], [], []
        vocabulary = build_vocabulary(world.log)
        for examples in _examples(world, config, seed):
            batch = build_batch(world.log, examples, vocabulary)
            real = examples.real
            owner = np.nonzero(real)[0]
            x.append(
                pair_features(
                    batch.user_x.numpy()[owner],
                    batch.item_x.numpy()[real],
                    batch.genres.numpy()[real],
                )
            )
            labels = examples.labels * np.asarray(SHIPPED_TASKS.gains)
            gain.append(labels.max(axis=-1)[real].astype(np.int64))
            groups.append(real.sum(axis=1))
        train = lgb.Dataset(np.concatenate(x), np.concatenate(gain), group=np.concatenate(groups))
        parameters = {
            "objective": "lambdarank",
            "label_gain": list(range(int(max(SHIPPED_TASKS.gains)) + 1)),
            "learning_rate": 0.06,
            "num_leaves": 31,
            "min_data_in_leaf": 50,
            "seed": seed,
            "num_threads": 1,
            "deterministic": True,
            "verbosity": -1,
        }
        return cls(lgb.train(parameters, train, num_boost_round=150))

    def scores(self, x: np.ndarray) -> np.ndarray:
        """float64 [R]"""
        return np.asarray(self.booster.predict(x, num_threads=1))


def _examples(world: ServedWorld, config: RankerConfig, seed: int) -> list[RankerExamples]:
    """Slates, and replayed interactions with sampled negatives."""
    interactions = unlogged_examples(
        world.log,
        negatives=_NEGATIVES,
        uniform_share=1.0,
        whole_catalogue=1,
        since_ms=0,
        count=config.interactions,
        seed=seed,
    )
    slates = impression_examples(world.log, count=config.slates)
    return [examples for examples in (interactions, slates) if len(examples)]


def pair_features(user_x: np.ndarray, item_x: np.ndarray, genres: np.ndarray) -> np.ndarray:
    """float32 [R, F]: the ranker's features of R pairs of a user and an item."""
    return np.hstack([user_x, item_x, genres]).astype(np.float32)
