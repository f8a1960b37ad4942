"""A learner that knows the world's form, but not its parameters.

Knows: stars are a biased factorisation, a reaction is logistic in quality, taste and the item's own
gift with the world's coefficients and intercepts, tastes turn by a known angle towards an unknown
vector, and which slots were attended. Does not know: users' and items' vectors, quality and gifts.

Item vectors are fitted on the replayed stars with the world's own ridge. Each user's vector now and
the one that taste turns towards have a Gaussian belief, as each item's gifts have; every attended
slot updates both by one extended Kalman step. The part of taste that no star shows is noise to it.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks.loop.world import GAINS, SLOTS, DriftingWorld
from deploy.simulation.truth import WORLD_TASKS, sigmoid

_STAR_NOISE = 0.9  # variance of a star around its prediction
_SWEEPS = 8


class FormLearner:
    """Serves greedily by its beliefs' means. Learns after every slate."""

    def __init__(self, world: DriftingWorld) -> None:
        self._world, planted = world, world.planted
        self.played = world.played.copy()
        effects = planted.world.effects
        self._taste = np.asarray(effects.taste) * planted.world.taste.heterogeneity
        self._appeal = np.asarray(effects.appeal)
        quality, self._items, users, cov = _fitted(world)
        traits = np.log(np.maximum(planted.traits, 0.02))
        shared = planted.intercepts + np.outer(quality, effects.main)
        self._base = shared[None] + traits[:, None]  # [U, V, T]
        k = self._items.shape[1]
        spread = np.cov(users.T) + cov.mean(axis=0)
        self._mean = np.hstack([users, np.zeros((len(users), k))])
        self._cov = np.zeros((len(users), 2 * k, 2 * k))
        self._cov[:, :k, :k], self._cov[:, k:, k:] = cov, spread
        self._gift = np.zeros((len(self._items), len(WORLD_TASKS)))
        self._gift_var = np.ones_like(self._gift)
        self._reward = np.zeros(0)
        self.start_step(0)

    def start_step(self, step: int) -> None:
        angle = self._world.angle(step)
        self._turned = np.hstack([math.cos(angle) * self._items, math.sin(angle) * self._items])

    def slate(self, user: int, _draw: int) -> np.ndarray:
        """int64 [SLOTS]"""
        open_ = np.flatnonzero(~self.played[user])
        p = self._odds(user, open_)
        p[:, 1:] *= p[:, :1]
        return open_[np.argsort(-(p @ GAINS))[:SLOTS]]

    def hear(self, user: int, slate: np.ndarray, acts: dict[int, set[str]]) -> None:
        """acts: kinds by slot; a slot without play and skip was not attended."""
        for slot, kinds in acts.items():
            if not kinds & {"play", "skip"}:
                continue
            item, played = int(slate[slot]), "play" in kinds
            for task, name in enumerate(WORLD_TASKS[: len(WORLD_TASKS) if played else 1]):
                self._learn(user, item, task, float(name in kinds))
            self.played[user, item] |= played

    def _odds(self, user: int, rows: np.ndarray) -> np.ndarray:
        """float64 [len(rows), T]"""
        liking = self._turned[rows] @ self._mean[user]
        own = liking[:, None] * self._taste + self._gift[rows] * self._appeal
        return sigmoid(self._base[user, rows] + own)

    def _learn(self, user: int, item: int, task: int, done: float) -> None:
        towards = self._taste[task] * self._turned[item]
        p = float(self._odds(user, np.array([item]))[0, task])
        gain = self._cov[user] @ towards
        gift_gain = self._gift_var[item, task] * self._appeal[task]
        slope = p * (1 - p)
        variance = 1 / max(slope, 1e-3) + towards @ gain + gift_gain * self._appeal[task]
        surprise = (done - p) / max(slope, 1e-3) / variance
        self._mean[user] += gain * surprise
        self._cov[user] -= np.outer(gain, gain) / variance
        self._gift[item, task] += gift_gain * surprise
        self._gift_var[item, task] -= gift_gain**2 / variance


def _fitted(world: DriftingWorld) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """quality [V], item vectors [V, k], users' vectors [U, k] and their covariance [U, k, k]."""
    rules = world.planted.world.taste
    stars = np.zeros(world.played.shape)
    users = [world.planted.user_row[user] for user in world.ratings["user_id"]]
    items = [world.item_row[item] for item in world.ratings["video_id"]]
    stars[users, items] = world.ratings["rating"].to_numpy()
    known = (stars > 0).astype(float)
    mean = stars.sum() / known.sum()
    bias = ((stars - mean) * known).sum(0) / (known.sum(0) + rules.ridge)
    own = ((stars - mean - bias) * known).sum(1) / (known.sum(1) + rules.ridge)
    left = (stars - mean - bias - own[:, None]) * known
    item_side = np.random.default_rng([world.seed, 75]).normal(0, 0.1, (len(bias), rules.factors))
    for _ in range(_SWEEPS):
        user_side, _ = _ridge(left, known, item_side, rules.ridge)
        item_side, _ = _ridge(left.T, known.T, user_side, rules.ridge)
    user_side, cov = _ridge(left, known, item_side, rules.ridge)
    popular = np.log1p(known.sum(0))
    quality = _standard(_standard(bias) + _standard(popular))
    scale = float((user_side @ item_side.T).std()) or 1.0
    stated = max(rules.fitted, 0.0) ** 0.5 / scale
    return quality, item_side, (user_side - user_side.mean(0)) * stated, cov * stated**2


def _ridge(
    left: np.ndarray, known: np.ndarray, other: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    k = other.shape[1]
    outer = (other[:, :, None] * other[:, None, :]).reshape(len(other), k * k)
    gram = (known @ outer).reshape(-1, k, k) + ridge * np.eye(k)
    inverse = np.linalg.inv(gram)
    return np.einsum("nij,nj->ni", inverse, left @ other), inverse * _STAR_NOISE


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / (values.std() + 1e-12))
