"""Arms without our pipeline: popularity, item-kNN, implicit matrix factorisation.

Knows what the arm's own users played and were shown. Does not know the planted truth, nor serving.

`every`: steps between two fits; None: fitted once, on the history (frozen). What a user has played
is left out at once. Fitted arms draw as the served feed does by default: by score at a temperature of
0.05 of its standard deviation, with 3 % of the slots given to an item that is rarely shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.loop.world import SLOTS

_NEIGHBOURS = 50
_FACTORS, _SWEEPS, _RIDGE, _UNSEEN = 16, 8, 4.0, 0.1
_TEMPERATURE, _EXPLORE, _RARE = 0.05, 0.03, 100

Fit = Callable[[np.ndarray, int], np.ndarray]
"""(plays [U, V], seed) -> scores [U, V]"""


@dataclass
class PlainArm:
    """played: bool [U, V], of the history at first. seen: bool [U, V], what was shown this week."""

    played: np.ndarray
    fit: Fit
    every: int | None
    explores: bool
    seed: int
    seen: np.ndarray = field(init=False)
    scores: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.played = self.played.copy()
        self.shown = np.zeros(self.played.shape[1], np.int64)
        self.scores = self.fit(self.played, self.seed)

    def slate(self, user: int, draw: int) -> np.ndarray:
        """int64 [SLOTS]: rows of items."""
        open_ = np.flatnonzero(~self.played[user])
        score = self.scores[user, open_]
        if not self.explores:
            return open_[np.argsort(-score, kind="stable")[:SLOTS]]
        rng = np.random.default_rng([self.seed, 73, draw])
        noisy = score / (_TEMPERATURE * (score.std() + 1e-12)) + rng.gumbel(size=len(open_))
        slate = open_[np.argsort(-noisy)[:SLOTS]]
        rare = np.setdiff1d(open_[self.shown[open_] < _RARE], slate)
        for slot in np.flatnonzero(rng.random(SLOTS) < _EXPLORE)[: len(rare)].tolist():
            slate[slot] = rng.choice(np.setdiff1d(rare, slate))
        return slate

    def hear(self, user: int, slate: np.ndarray, plays: list[int]) -> None:
        """plays: slots."""
        self.shown[slate] += 1
        self.played[user, slate[plays]] = True

    def end_step(self, step: int) -> None:
        if self.every is not None and (step + 1) % self.every == 0:
            self.scores = self.fit(self.played, self.seed)


def popularity(plays: np.ndarray, _seed: int) -> np.ndarray:
    """By users who played the item."""
    return np.broadcast_to(np.log1p(plays.sum(axis=0)), plays.shape)


def item_knn(plays: np.ndarray, _seed: int) -> np.ndarray:
    """The sum of cosines to the user's plays over each item's 50 nearest."""
    seen = plays.astype(float)
    norm = np.sqrt(seen.sum(axis=0)) + 1e-9
    near = (seen.T @ seen) / np.outer(norm, norm)
    np.fill_diagonal(near, 0.0)
    kept = min(_NEIGHBOURS, near.shape[1])
    least = np.partition(near, -kept, axis=1)[:, -kept][:, None]
    return np.asarray(seen @ np.where(near >= least, near, 0.0))


def implicit_factors(plays: np.ndarray, seed: int) -> np.ndarray:
    """Alternating least squares on plays, unplayed pairs with a small weight (Hu et al. 2008)."""
    seen = plays.astype(float)
    items = np.random.default_rng([seed, 74]).normal(0, 0.1, (seen.shape[1], _FACTORS))
    users = np.zeros((len(seen), _FACTORS))
    for _ in range(_SWEEPS):
        users = _solve(seen, items)
        items = _solve(seen.T, users)
    return np.asarray(users @ items.T)


def _solve(seen: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float64 [N, k]: ridge regressions of each row."""
    k = other.shape[1]
    outer = (other[:, :, None] * other[:, None, :]).reshape(len(other), k * k)
    gram = ((1 - _UNSEEN) * (seen @ outer)).reshape(-1, k, k) + _UNSEEN * (other.T @ other)
    gram += _RIDGE * np.eye(k)
    return np.asarray(np.linalg.solve(gram, (seen @ other)[:, :, None])[:, :, 0])
