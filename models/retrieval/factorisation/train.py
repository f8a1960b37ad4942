"""Alternating least squares on weighted likings, with item and user biases.

Knows interactions and settings. Does not know files. Source: Koren, Bell, Volinsky,
Computer 42(8), 2009; confidence as in Hu, Koren, Volinsky, ICDM 2008, but only over pairs that
were observed: an item that the user never met says nothing about liking.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from models.recipe import NotEnoughData, TrainingLog
from models.retrieval.factorisation.blend import learned_weights
from models.retrieval.factorisation.config import FactorisationConfig
from models.retrieval.factorisation.data import Interactions, interactions
from models.retrieval.factorisation.factors import LikingFactors

MIN_INTERACTIONS = 200


@dataclass(frozen=True)
class _Fit:
    mean: float
    bias: np.ndarray
    own: np.ndarray
    users: np.ndarray
    items: np.ndarray

    def predict(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        personal = (self.users[user] * self.items[item]).sum(axis=1)
        return np.asarray(self.mean + self.bias[item] + self.own[user] + personal)


def train(log: TrainingLog, config: FactorisationConfig, *, seed: int) -> LikingFactors:
    """Chooses ridge and weights on held-out interactions, then fits all of them.

    Raises `NotEnoughData` with what is missing.
    """
    pairs = interactions(log)
    if len(pairs) < MIN_INTERACTIONS:
        raise NotEnoughData(f"interactions: {len(pairs)} of {MIN_INTERACTIONS}")
    ridge, weights = choose(pairs, config, seed)
    fitted = _fit(pairs, config, ridge, seed)
    bias, personal, popular = weights
    return LikingFactors(
        user_ids=pairs.user_ids,
        item_ids=pairs.item_ids,
        bias=bias * fitted.bias,
        users=personal * fitted.users,
        items=fitted.items,
        popular=popular * np.log1p(pairs.plays),
        ridge=ridge,
    )


def choose(
    pairs: Interactions, config: FactorisationConfig, seed: int
) -> tuple[float, tuple[float, ...]]:
    """The ridge with the lowest squared error on held-out plays, and the weights of bias,
    personal part and log plays that explain held-out impressions best.

    Held out at random, not in time: users of a replayed history come and go, and most pairs of
    its end are of users without a past.
    """
    rng = np.random.default_rng(seed)
    held = rng.random(len(pairs)) < config.held_out
    kept, later = _take(pairs, ~held), _take(pairs, held)
    fits = [_fit(kept, config, ridge, seed) for ridge in config.ridges]
    errors = [_error(fitted, later) for fitted in fits]
    best = int(np.argmin(errors))
    shown = _take(later, later.shown)
    learned = learned_weights(_parts(fits[best], shown), shown.played)
    weights = (1.0, 1.0, config.popularity) if learned is None else tuple(learned.tolist())
    return config.ridges[best], weights


def _error(fitted: _Fit, pairs: Interactions) -> float:
    predicted = fitted.predict(pairs.user, pairs.item)
    return float(((predicted - pairs.liking) ** 2)[pairs.played].mean())


def _parts(fitted: _Fit, pairs: Interactions) -> np.ndarray:
    """float64 [N, 3]: bias, personal part and log plays of each pair."""
    personal = (fitted.users[pairs.user] * fitted.items[pairs.item]).sum(axis=1)
    return np.column_stack([fitted.bias[pairs.item], personal, np.log1p(pairs.plays[pairs.item])])


def _take(pairs: Interactions, rows: np.ndarray) -> Interactions:
    return replace(
        pairs,
        user=pairs.user[rows],
        item=pairs.item[rows],
        liking=pairs.liking[rows],
        played=pairs.played[rows],
        shown=pairs.shown[rows],
    )


def _fit(pairs: Interactions, config: FactorisationConfig, ridge: float, seed: int) -> _Fit:
    weight = np.where(pairs.played, 1.0, config.skip_weight)
    mean = float(np.average(pairs.liking, weights=weight))
    users, items = len(pairs.user_ids), len(pairs.item_ids)
    bias = _means(pairs.item, pairs.liking - mean, weight, items, ridge)
    own = _means(pairs.user, pairs.liking - mean - bias[pairs.item], weight, users, ridge)
    left = pairs.liking - mean - bias[pairs.item] - own[pairs.user]
    item_side = np.random.default_rng(seed).normal(0, 0.1, (items, config.factors))
    by_user, by_item = _grouped(pairs.user, users), _grouped(pairs.item, items)
    for _ in range(config.sweeps):
        user_side = _solve(by_user, item_side[pairs.item], left, weight, ridge)
        item_side = _solve(by_item, user_side[pairs.user], left, weight, ridge)
    return _Fit(mean, bias, own, user_side, item_side)


def _means(
    rows: np.ndarray, values: np.ndarray, weight: np.ndarray, count: int, ridge: float
) -> np.ndarray:
    """float64 [count]: weighted means by row, shrunk to 0 by `ridge` pseudo-observations."""
    total = np.bincount(rows, weight * values, minlength=count)
    return np.asarray(total / (np.bincount(rows, weight, minlength=count) + ridge))


def _grouped(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """The positions of each row's pairs."""
    order = np.argsort(rows, kind="stable")
    return np.split(order, np.cumsum(np.bincount(rows, minlength=count))[:-1])


def _solve(
    groups: list[np.ndarray], x: np.ndarray, y: np.ndarray, weight: np.ndarray, ridge: float
) -> np.ndarray:
    """float64 [len(groups), k]: one weighted ridge regression of y [N] on x [N, k] a group."""
    found = np.zeros((len(groups), x.shape[1]))
    penalty = ridge * np.eye(x.shape[1])
    for row, pairs in enumerate(groups):
        if len(pairs):
            seen, weights = x[pairs], weight[pairs]
            gram = (seen * weights[:, None]).T @ seen + penalty
            found[row] = np.linalg.solve(gram, seen.T @ (weights * y[pairs]))
    return found
