"""The ranking world as rows of (user, item, features): five tasks on logged impressions.

Knows the world's constants (`benchmarks/worlds/ranking`). Users and items have factors; a
task's log-odds are an affinity shared by all tasks and one of its own, mixed by the world's
correlation, at the world's rates and deviation; a label needs attention to its slot. Rows hold
what a platform can observe: profiles, noisy traits of items, counts of an earlier part of the
log. Impressions are split by time like the real data; impressions without action are
negatives. Does not know models.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from benchmarks.multitask.datasets import CUTS, Dataset, Rows
from benchmarks.worlds.ranking.config import WORLD_TASKS, RankingWorld
from benchmarks.worlds.ranking.pools import PoolMaker, attention
from benchmarks.worlds.ranking.population import populate

# Many sessions of few users, and few factors, so that tastes can be learned.
USERS, ITEMS, SESSIONS = 600, 600, 25
FACTORS = 2  # of each affinity
TRAIT_NOISE = 0.5  # deviations of noise on what is known of an item, per deviation of truth


def world(path: Path | None, *, quick: bool = False) -> Dataset:
    """Five tasks in the headline world, or in the one that `path` describes."""
    found = RankingWorld.load(path) if path else RankingWorld.named("headline")
    users = USERS // (4 if quick else 1)
    size = found.size.model_copy(
        update={"train_users": users, "valid_users": 0, "test_users": 0, "sessions": SESSIONS}
    )
    return _dataset(found.model_copy(update={"size": size}))


def _dataset(rules: RankingWorld) -> Dataset:
    users, tasks = rules.size.users, len(WORLD_TASKS)
    rng = np.random.default_rng([7, users])
    people = populate(rules, seed=7)
    tastes = rng.normal(size=(1 + tasks, users, FACTORS))
    nature = rng.normal(size=(1 + tasks, ITEMS, FACTORS))
    slots = np.tile(np.arange(rules.size.slate), users * rules.size.sessions)
    user = np.repeat(np.tile(np.arange(users), rules.size.sessions), rules.size.slate)
    item = rng.integers(0, ITEMS, len(user))
    affinity = (tastes[:, user] * nature[:, item]).sum(-1) / np.sqrt(FACTORS)
    shared = rules.candidates.correlation
    z = np.sqrt(shared) * affinity[0] + np.sqrt(1 - shared) * affinity[1:]
    odds = PoolMaker.of(rules).intercepts.numpy()[:, None] + rules.candidates.deviation * z
    odds = odds + people.habit.numpy()[user].T
    chance = attention(rules).numpy()[slots] / (1 + np.exp(-odds))
    labels = (rng.random(chance.shape) < chance).T.astype(np.float32)
    traits = np.hstack([*nature]) + TRAIT_NOISE * rng.normal(size=(ITEMS, (1 + tasks) * FACTORS))
    session = np.repeat(np.arange(rules.size.sessions), users * rules.size.slate)
    part = np.searchsorted(CUTS, session / rules.size.sessions, side="right")
    x = _features(user, item, labels, part == 0, people.profile.numpy(), traits)
    train, valid, test = (
        Rows(user[p], item[p], x[p], labels[p]) for p in (part == n for n in (1, 2, 3))
    )
    digest = hashlib.sha256(user.tobytes() + item.tobytes() + labels.tobytes()).hexdigest()[:16]
    return Dataset(f"world {rules.name}", WORLD_TASKS, users, ITEMS, train, valid, test, digest)


def _features(
    user: np.ndarray,
    item: np.ndarray,
    labels: np.ndarray,
    past: np.ndarray,
    profile: np.ndarray,
    traits: np.ndarray,
) -> np.ndarray:
    """float32 [N, F]: profile, traits, past counts, and the past's plays' mean traits."""
    who, what, did = user[past], item[past], labels[past]
    of_user = np.stack([np.bincount(who, column, len(profile)) for column in did.T], 1)
    of_item = np.stack([np.bincount(what, column, len(traits)) for column in did.T], 1)
    liked = np.zeros((len(profile), traits.shape[1]))
    np.add.at(liked, who, did[:, :1] * traits[what])
    liked /= np.maximum(of_user[:, :1], 1)
    match = (liked[user] * traits[item]).sum(1, keepdims=True)
    counts = np.log1p(np.hstack([of_user[user], of_item[item]]))
    return np.hstack([profile[user], traits[item], counts, match]).astype(np.float32)
