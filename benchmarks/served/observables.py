"""What serving can observe of every pair of a user and an item, and the best policy on it.

Knows the served state, the plain baselines' scores and, for training the best policy alone, the
true expected utility. Does not know the ranker's network.

The best policy is a LightGBM regressor of the true expected utility, fitted on other users
than those that it ranks. Items are shared by both, so it may learn what an item is worth from
the true reactions of other users: an upper mark for any policy with the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightgbm as lgb
import numpy as np

from benchmarks.served.baselines import Factorisation, log_plays, pair_features
from benchmarks.served.pipeline import ServedState
from benchmarks.served.world import ServedWorld
from models.ranking.ple.inputs import assemble_request
from serving.pipeline.query import Query
from serving.stages.sources import co_engagement, genre_match

_SAMPLED = 300  # items a user in training; half of them the most promising
_PROMISING = 400
_ROUNDS = 250


def ranker_inputs(world: ServedWorld, served: ServedState) -> list[np.ndarray]:
    """One array a user: float32 [V, F], the ranker's features of every item."""
    store, about = served.deps.store, world.items
    author_of = {item.video_id: item.author_id or "" for item in about}
    found = []
    for user_id, at_ms in zip(world.user_ids, world.at_ms.tolist(), strict=True):
        user = store.read("user", [user_id], at_ms)
        items = store.read("video", world.item_ids, at_ms)
        authors = store.read("author", [item.author_id or "" for item in about], at_ms)
        tensors = assemble_request(user, items, authors, about, author_of, at_ms)
        wide = np.broadcast_to(tensors["user_x"], (len(about), len(tensors["user_x"])))
        found.append(pair_features(wide, tensors["video_x"], tensors["genres"]))
    return found


def plain_scores(
    world: ServedWorld,
    served: ServedState,
    knn: np.ndarray,
    fitted: Factorisation,
    liking: np.ndarray,
) -> np.ndarray:
    """float32 [U, V, 7]: factorisation (personal, bias), popularity, neighbours, genres,
    co-engagement and the served liking."""
    scores = np.zeros((*world.eligible.shape, 7), np.float32)
    scores[..., 0] = fitted.personal(world.users)
    scores[..., 1] = fitted.bias
    scores[..., 2] = log_plays(world)
    scores[..., 3] = np.log1p(knn)
    scores[..., 6] = liking
    for row, (user_id, at_ms) in enumerate(zip(world.user_ids, world.at_ms, strict=True)):
        scores[row, :, 4:6] = _served_scores(world, served, user_id, int(at_ms))
    return scores


def _served_scores(world: ServedWorld, served: ServedState, user_id: str, at_ms: int) -> np.ndarray:
    """float [V, 2]: genre similarity and co-engagement as the sources compute them."""
    deps = served.deps
    query = Query(
        "r", "feed", user_id, 10, at_ms, 0, user=deps.store.read("user", [user_id], at_ms)
    )
    index = deps.catalogue.index()
    rows, strength = co_engagement(query, deps.catalogue, deps.activity)
    both = np.zeros((len(world.items), 2))
    both[[world.item_row[item_id] for item_id in index.ids], 0] = genre_match(query, deps.catalogue)
    together = [world.item_row[item_id] for item_id in index.numbers.ids_of(rows)]
    both[together, 1] = np.log1p(strength)
    return both


def best_policy(
    world: ServedWorld, inputs: Sequence[np.ndarray], plain: np.ndarray, folds: int, seed: int
) -> np.ndarray:
    """float64 [U, V]: expected utility, predicted by models of other users."""
    rng = np.random.default_rng([seed, 41])
    users = len(inputs)
    fold = rng.permutation(users) % folds
    rows = [_training_rows(world.eligible[user], plain[user], rng) for user in range(users)]
    scores = np.zeros(world.eligible.shape)
    for number in range(folds):
        learnt = [user for user in range(users) if fold[user] != number]
        x = np.concatenate([_joined(inputs[u][rows[u]], plain[u][rows[u]]) for u in learnt])
        y = np.concatenate([world.utility[u][rows[u]] for u in learnt])
        model = _fit(x, y, seed)
        for user in np.flatnonzero(fold == number).tolist():
            scores[user] = model.predict(_joined(inputs[user], plain[user]), num_threads=1)
    return scores


def _training_rows(eligible: np.ndarray, plain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the most promising items of a user by the plain scores, half of all."""
    promise = plain[:, 0] + plain[:, 1] + 0.15 * plain[:, 2]
    best = np.argsort(-np.where(eligible, promise, -np.inf))[:_PROMISING]
    best = best[eligible[best]]
    every = np.flatnonzero(eligible)
    half = _SAMPLED // 2
    drawn = [rng.choice(each, min(half, len(each)), replace=False) for each in (best, every)]
    return np.unique(np.concatenate(drawn))


def _joined(inputs: np.ndarray, plain: np.ndarray) -> np.ndarray:
    return np.hstack([plain, inputs])


def _fit(x: np.ndarray, y: np.ndarray, seed: int) -> lgb.Booster:
    parameters = {
        "objective": "regression",
        "learning_rate": 0.06,
        "num_leaves": 31,
        "min_data_in_leaf": 100,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "seed": seed,
        "num_threads": 1,
        "deterministic": True,
        "verbosity": -1,
    }
    return lgb.train(parameters, lgb.Dataset(x, y), num_boost_round=_ROUNDS)
