"""Factors of users and items, the scores that follow from them, and their file.

Knows arrays. Does not know logs or training. Numpy only: the served ranker reads it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from models.ids import id_hashes
from models.retrieval.factorisation.config import PARTS

FILE = "factors.npz"
_ARRAYS = ("mean", "bias", "users", "items", "popular")


@dataclass(frozen=True)
class LikingFactors:
    """U users, V items, k factors; float64.

    mean [V]: an item's mean liking, in [0, 1]. bias [V], popular [V]: log-odds of a play from
    the item's liking and from log(1 + plays). users [U, k], items [V, k]: their product is the
    user's own part, in log-odds of a play. ridge, scale: what users were fitted with, before
    they were scaled to log-odds.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    mean: np.ndarray
    bias: np.ndarray
    users: np.ndarray
    items: np.ndarray
    popular: np.ndarray
    ridge: float
    scale: float

    @classmethod
    def empty(cls, factors: int = 1) -> LikingFactors:
        """Of no users and items: every part is 0."""
        none, rows = np.zeros(0), np.zeros((0, factors))
        return cls((), (), none, none, rows, rows, none, 1.0, 1.0)

    @cached_property
    def user_hashes(self) -> np.ndarray:
        return id_hashes(self.user_ids)

    @cached_property
    def item_hashes(self) -> np.ndarray:
        return id_hashes(self.item_ids)

    def item_rows(self, hashes: np.ndarray) -> np.ndarray:
        """int64, the shape of `hashes`: rows of items; -1 for unknown ones."""
        return _rows(self._items_by_hash, hashes)

    def user_rows(self, hashes: np.ndarray) -> np.ndarray:
        """int64, the shape of `hashes`: rows of users; -1 for unknown ones."""
        return _rows(self._users_by_hash, hashes)

    def vector(self, user_hash: int, met: np.ndarray, liking: np.ndarray) -> np.ndarray:
        """float64 [k]: the user's factors; those of an unknown user follow from what they met.

        met: int64 [H], hashes of items, 0 for padding; liking: float [H], in [0, 1].
        """
        row = int(self.user_rows(np.array([user_hash]))[0])
        return self.users[row] if row >= 0 else self._folded_in(met, liking)

    def parts(self, vector: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """float32 [C, 3]: `PARTS` of each item; 0 for unknown items."""
        rows = self.item_rows(hashes)
        found = np.zeros((len(hashes), len(PARTS)), np.float32)
        known = rows >= 0
        rows = rows[known]
        own = self.items[rows] @ vector
        found[known] = np.column_stack([self.bias[rows], own, self.popular[rows]])
        return found

    def scores(self, vector: np.ndarray) -> np.ndarray:
        """float64 [V]: log-odds of a play up to a constant, to rank all items for one user."""
        return np.asarray(self.bias + self.popular + self.items @ vector)

    def _folded_in(self, met: np.ndarray, liking: np.ndarray) -> np.ndarray:
        """One ridge regression on the items that the user met, each at its strongest sign."""
        rows = self.item_rows(met)
        seen, place = np.unique(rows[rows >= 0], return_inverse=True)
        best = np.zeros(len(seen))
        np.maximum.at(best, place, liking[rows >= 0])
        left = best - self.mean[seen]
        left = left - left.sum() / (len(seen) + self.ridge)
        x = self.items[seen]
        gram = x.T @ x + self.ridge * np.eye(x.shape[1])
        return np.asarray(self.scale * np.linalg.solve(gram, x.T @ left))

    def save(self, folder: Path) -> None:
        np.savez(
            folder / FILE,
            user_ids=np.array(self.user_ids, np.str_),
            item_ids=np.array(self.item_ids, np.str_),
            fitted=np.array([self.ridge, self.scale]),
            **{name: getattr(self, name) for name in _ARRAYS},
        )

    @staticmethod
    def read(folder: Path) -> LikingFactors:
        """The folder's factors; empty ones where it has none."""
        if not (folder / FILE).is_file():
            return LikingFactors.empty()
        with np.load(folder / FILE, allow_pickle=False) as stored:
            ridge, scale = stored["fitted"].tolist()
            arrays = {name: stored[name] for name in _ARRAYS}
            return LikingFactors(
                user_ids=tuple(stored["user_ids"].tolist()),
                item_ids=tuple(stored["item_ids"].tolist()),
                ridge=ridge,
                scale=scale,
                **arrays,
            )

    @cached_property
    def _items_by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        return _sorted(self.item_hashes)

    @cached_property
    def _users_by_hash(self) -> tuple[np.ndarray, np.ndarray]:
        return _sorted(self.user_hashes)


def _sorted(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order


def _rows(known: tuple[np.ndarray, np.ndarray], hashes: np.ndarray) -> np.ndarray:
    ascending, order = known
    if not len(ascending):
        return np.full(np.shape(hashes), -1)
    place = np.minimum(np.searchsorted(ascending, hashes), len(ascending) - 1)
    return np.where(ascending[place] == hashes, order[place], -1)
