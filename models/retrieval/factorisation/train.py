"""Alternating least squares on weighted likings, with item and user biases, cross-fitted.

Knows interactions and settings. Does not know files. Source: Koren, Bell, Volinsky,
Computer 42(8), 2009; confidence as in Hu, Koren, Volinsky, ICDM 2008, but only over pairs that
were observed: an item that the user never met says nothing about liking.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from models.recipe import NotEnoughData, TrainingLog
from models.retrieval.factorisation.blend import learned_weights
from models.retrieval.factorisation.config import PARTS, FactorisationConfig
from models.retrieval.factorisation.data import Interactions, Shown, interactions, shown
from models.retrieval.factorisation.factors import LikingFactors

MIN_INTERACTIONS = 200
SHARES = (0.0, 0.25, 0.5, 1.0)
"""Of a start weight: see `_evidence`."""
# Of bias and personal part, relative to that of likings: a smaller one explains less than 1 % of
# them, and dividing by it would make a weight of any size.
_LEAST_DEVIATION = 0.1


@dataclass(frozen=True)
class _Fit:
    """mean: of all likings. bias [V], own [U], users [U, k], items [V, k]; plays [V]."""

    mean: float
    bias: np.ndarray
    own: np.ndarray
    users: np.ndarray
    items: np.ndarray
    plays: np.ndarray

    def parts(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float64 [N, 3]: `PARTS` of pairs, before they are weighted."""
        personal = (self.users[user] * self.items[item]).sum(axis=1)
        return np.column_stack([self.bias[item], personal, np.log1p(self.plays[item])])

    def predict(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        bias, personal, _ = self.parts(user, item).T
        return np.asarray(self.mean + self.own[user] + bias + personal)


@dataclass(frozen=True)
class CrossFitted:
    """Factors for serving, and factors that did not learn from a pair, to score it in training.

    folds: of the same users and items as `factors`; fold n did not learn from pairs with
    `fold_of` n. parts: float64 [N, 3], of the interactions, each by its own fold.
    """

    factors: LikingFactors
    folds: tuple[LikingFactors, ...]
    pairs: Interactions
    parts: np.ndarray

    def unseen_parts(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float32 [N, 3]: `PARTS` of pairs by factors that did not learn from the pair.

        user, item: int64 [N], hashes of ids. 0 for unknown items; unknown users have no
        personal part.
        """
        users, items = self.factors.user_rows(user), self.factors.item_rows(item)
        found = np.zeros((len(user), len(PARTS)), np.float32)
        fold = fold_of(user, item, len(self.folds))
        for number, factors in enumerate(self.folds):
            rows = np.flatnonzero((fold == number) & (items >= 0))
            at, who = items[rows], users[rows]
            personal = (factors.users[who] * factors.items[at]).sum(1) * (who >= 0)
            found[rows] = np.column_stack([factors.bias[at], personal, factors.popular[at]])
        return found


def fold_of(user: np.ndarray, item: np.ndarray, folds: int) -> np.ndarray:
    """int64 [N]: the fold of each pair of id hashes; the same in every process."""
    mixed = (user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ item.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.asarray((mixed >> np.uint64(33)) % np.uint64(folds), np.int64)


def train(log: TrainingLog, config: FactorisationConfig, *, seed: int) -> LikingFactors:
    """The factors for serving; see `cross_fit`."""
    return cross_fit(log, config, seed=seed).factors


def cross_fit(log: TrainingLog, config: FactorisationConfig, *, seed: int) -> CrossFitted:
    """Fits all interactions, and all but one fold of them, for each fold.

    The ridge is chosen on the first fold, the weights of the parts on all impressions, each
    scored by its own fold. Folds are random and not in time: users of a replayed history come
    and go, and most pairs of its end are of users without a past.

    Raises `NotEnoughData` with what is missing.
    """
    pairs = interactions(log)
    if len(pairs) < MIN_INTERACTIONS:
        raise NotEnoughData(f"interactions: {len(pairs)} of {MIN_INTERACTIONS}")
    fold = fold_of(pairs.user_hash[pairs.user], pairs.item_hash[pairs.item], config.folds)
    ridge, first = _chosen_ridge(pairs, fold != 0, config, seed)
    later = [_fit(_take(pairs, fold != n), config, ridge, seed) for n in range(1, config.folds)]
    fits = [first, *later]
    parts = _by_fold(fits, fold, pairs.user, pairs.item)
    least = np.array([_LEAST_DEVIATION * pairs.liking.std()] * 2 + [0.0])
    deviation = np.maximum(parts.std(axis=0), np.maximum(least, 1e-9))
    start = np.array(config.start) * _evidence(pairs, fits, fold, parts)
    weights = _weights(shown(log, pairs), fits, deviation, start, config) / deviation
    served = _fit(pairs, config, ridge, seed)
    return CrossFitted(
        factors=_weighted(served, pairs, weights, ridge),
        folds=tuple(_weighted(fitted, pairs, weights, ridge) for fitted in fits),
        pairs=pairs,
        parts=parts * weights,
    )


def _chosen_ridge(
    pairs: Interactions, kept: np.ndarray, config: FactorisationConfig, seed: int
) -> tuple[float, _Fit]:
    learned, held = _take(pairs, kept), _take(pairs, ~kept & pairs.played)
    fits = [_fit(learned, config, ridge, seed) for ridge in config.ridges]
    errors = np.array([np.mean((f.predict(held.user, held.item) - held.liking) ** 2) for f in fits])
    best = int(np.flatnonzero(errors <= errors.min() * (1 + config.tolerance)).max())
    return config.ridges[best], fits[best]


def _by_fold(fits: list[_Fit], fold: np.ndarray, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    parts = np.zeros((len(user), len(PARTS)))
    for number, fitted in enumerate(fits):
        rows = fold == number
        parts[rows] = fitted.parts(user[rows], item[rows])
    return parts


def _evidence(
    pairs: Interactions, fits: list[_Fit], fold: np.ndarray, parts: np.ndarray
) -> np.ndarray:
    """float64 [3], each in `SHARES`: how much of its start weight a part deserves.

    The start weights are per standard deviation, so where there is nothing to learn they would
    make noise as large as taste. Bias and personal part get the smallest shares that predict
    likings which the fits did not learn from as well as the best do, within one standard error;
    popularity is counted, not fitted.
    """
    rest = np.zeros(len(pairs))
    for number, fitted in enumerate(fits):
        rows = fold == number
        rest[rows] = fitted.mean + fitted.own[pairs.user[rows]]
    left, (bias, personal, _) = (pairs.liking - rest)[pairs.played], parts[pairs.played].T
    pairs_of_shares = sorted(itertools.product(SHARES, SHARES), key=sum)
    errors = np.array(
        [(left - own * bias - other * personal) ** 2 for own, other in pairs_of_shares]
    )
    beyond = errors - errors[errors.mean(axis=1).argmin()]
    doubt = beyond.std(axis=1) / max(len(left), 1) ** 0.5
    own, other = pairs_of_shares[int(np.argmax(beyond.mean(axis=1) <= doubt))]
    return np.array([own, other, 1.0])


def _weights(
    seen: Shown,
    fits: list[_Fit],
    deviation: np.ndarray,
    start: np.ndarray,
    config: FactorisationConfig,
) -> np.ndarray:
    """float64 [3]: log-odds of a play per standard deviation of each part."""
    parts = _by_fold(fits, fold_of(seen.user_hash, seen.item_hash, len(fits)), seen.user, seen.item)
    slot = np.log1p(seen.slot)[:, None]
    return learned_weights(parts / deviation, seen.played, start, config.start_strength, slot)


def _weighted(
    fitted: _Fit, pairs: Interactions, weights: np.ndarray, ridge: float
) -> LikingFactors:
    bias, personal, popular = weights.tolist()
    return LikingFactors(
        user_ids=pairs.user_ids,
        item_ids=pairs.item_ids,
        mean=fitted.mean + fitted.bias,
        bias=bias * fitted.bias,
        users=personal * fitted.users,
        items=fitted.items,
        popular=popular * np.log1p(fitted.plays),
        ridge=ridge,
        scale=personal,
    )


def _take(pairs: Interactions, rows: np.ndarray) -> Interactions:
    """Some of the pairs; plays are scaled to what all of them would have."""
    share = max(float(rows.mean()), 1e-9)
    played = rows & pairs.played
    return replace(
        pairs,
        user=pairs.user[rows],
        item=pairs.item[rows],
        liking=pairs.liking[rows],
        played=pairs.played[rows],
        actions=pairs.actions[rows],
        plays=np.bincount(pairs.item[played], minlength=len(pairs.item_ids)) / share,
    )


def _fit(pairs: Interactions, config: FactorisationConfig, ridge: float, seed: int) -> _Fit:
    weight = np.where(pairs.played, 1.0, config.skip_weight)
    mean = float(np.average(pairs.liking, weights=weight))
    users, items = len(pairs.user_ids), len(pairs.item_ids)
    bias, own = np.zeros(items), np.zeros(users)
    for _ in range(2):
        left = pairs.liking - mean
        bias = _means(pairs.item, left - own[pairs.user], weight, items, config.bias_ridge)
        own = _means(pairs.user, left - bias[pairs.item], weight, users, ridge)
    left = pairs.liking - mean - bias[pairs.item] - own[pairs.user]
    item_side = np.random.default_rng(seed).normal(0, 0.1, (items, config.factors))
    by_user = _Sparse.of(pairs.user, pairs.item, weight, left, (users, items))
    by_item = _Sparse.of(pairs.item, pairs.user, weight, left, (items, users))
    sides = torch.zeros((users, config.factors)), torch.from_numpy(item_side)
    for _ in range(config.sweeps):
        user_rows = by_user.ridge_rows(sides[1], ridge)
        sides = user_rows, by_item.ridge_rows(user_rows, ridge)
    user_side, item_side = (side.numpy() for side in sides)
    return _Fit(mean, bias, own, user_side, item_side, pairs.plays)


def _means(
    rows: np.ndarray, values: np.ndarray, weight: np.ndarray, count: int, ridge: float
) -> np.ndarray:
    """float64 [count]: weighted means by row, shrunk to 0 by `ridge` pseudo-observations."""
    total = np.bincount(rows, weight * values, minlength=count)
    return np.asarray(total / (np.bincount(rows, weight, minlength=count) + ridge))


@dataclass(frozen=True)
class _Sparse:
    """Weights, and weights times values, as sparse matrices [R, C] of float64."""

    weights: Tensor
    values: Tensor

    @staticmethod
    def of(
        row: np.ndarray,
        column: np.ndarray,
        weight: np.ndarray,
        value: np.ndarray,
        shape: tuple[int, int],
    ) -> _Sparse:
        order = np.lexsort((column, row))
        starts = torch.from_numpy(np.searchsorted(row[order], np.arange(shape[0] + 1)))
        columns = torch.from_numpy(column[order])
        each = (torch.from_numpy(v[order]) for v in (weight, weight * value))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "sparse CSR support is in beta"
            return _Sparse(*(torch.sparse_csr_tensor(starts, columns, v, shape) for v in each))

    def ridge_rows(self, other: Tensor, ridge: float) -> Tensor:
        """float64 [R, k]: of each row the weighted ridge regression of its values on `other`."""
        k = other.shape[1]
        up, low = torch.triu_indices(k, k)  # half of the products: Gram matrices are symmetric
        gram = torch.zeros((self.weights.shape[0], k, k), dtype=other.dtype)
        sums = self.weights @ (other[:, up] * other[:, low])
        gram[:, up, low] = gram[:, low, up] = sums
        gram += ridge * torch.eye(k, dtype=other.dtype)
        return torch.as_tensor(torch.linalg.solve(gram, self.values @ other))
