"""Factors of users and items, the scores that follow from them, and their file.

Knows arrays. Does not know logs or training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

FILE = "factors.npz"


@dataclass(frozen=True)
class LikingFactors:
    """U users, V items, k factors; float64.

    bias [V]: how much more an item is liked than the average one. users [U, k], items [V, k]:
    their product is the user's own part. popular [V]: the weighted log(1 + plays). ridge: the
    penalty they were fitted with.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    bias: np.ndarray
    users: np.ndarray
    items: np.ndarray
    popular: np.ndarray
    ridge: float

    @cached_property
    def user_row(self) -> dict[str, int]:
        return {user_id: row for row, user_id in enumerate(self.user_ids)}

    def personal(self, user_id: str) -> np.ndarray:
        """float64 [V]: the user's own part of the liking; 0 for unknown users."""
        row = self.user_row.get(user_id)
        if row is None:
            return np.zeros(len(self.item_ids))
        return np.asarray(self.items @ self.users[row])

    def scores(self, user_id: str) -> np.ndarray:
        """float64 [V]: liking plus popularity, to rank the items of one user."""
        return np.asarray(self.bias + self.popular + self.personal(user_id))

    def best(self, user_id: str, count: int) -> list[str]:
        """The ids of the `count` best items, best first."""
        order = np.argsort(-self.scores(user_id), kind="stable")[:count]
        return [self.item_ids[row] for row in order]

    def save(self, folder: Path) -> None:
        np.savez(
            folder / FILE,
            user_ids=np.array(self.user_ids, np.str_),
            item_ids=np.array(self.item_ids, np.str_),
            bias=self.bias,
            users=self.users,
            items=self.items,
            popular=self.popular,
            ridge=np.float64(self.ridge),
        )

    @staticmethod
    def read(folder: Path) -> LikingFactors:
        with np.load(folder / FILE, allow_pickle=False) as stored:
            return LikingFactors(
                user_ids=tuple(stored["user_ids"].tolist()),
                item_ids=tuple(stored["item_ids"].tolist()),
                bias=stored["bias"],
                users=stored["users"],
                items=stored["items"],
                popular=stored["popular"],
                ridge=float(stored["ridge"]),
            )
