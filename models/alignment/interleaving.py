"""Team-draft interleaving: two rankers share one slate, and clicks show which is better.

Knows rankings as sequences of ids and clicks as sets of ids. Does not know rankers or users.
Far more sensitive than an A/B test, since each user compares both at once (Radlinski, Kurup,
Joachims 2008, doi.org/10.1145/1458082.1458092): the rankers pick in turns, a coin decides who
picks first in a round, and a click counts for the ranker that picked the item. Equal rankings
get equal credit on average, whatever the position bias.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from models.training.evaluation import paired_bootstrap

Team = Literal["a", "b"]
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Draft(Generic[Item]):
    """One interleaved slate: items in order, and the team that picked each."""

    items: tuple[Item, ...]
    teams: tuple[Team, ...]


@dataclass(frozen=True)
class Preference:
    """`difference`: share of slates won by b minus share won by a, with its 95 % interval.

    In [-1, 1]; 0 is no preference. `slates` counts all, `decided` those not tied.
    """

    difference: tuple[float, float, float]  # mean, low, high
    wins: dict[Team, int]
    slates: int

    @property
    def decided(self) -> int:
        return self.wins["a"] + self.wins["b"]

    @property
    def winner(self) -> Team | None:
        """The preferred ranker; None where the interval contains 0."""
        _, low, high = self.difference
        return "b" if low > 0 else "a" if high < 0 else None


def team_draft(a: Sequence[Item], b: Sequence[Item], k: int, *, seed: int) -> Draft[Item]:
    """The first `k` items of both rankings, drafted in turns; the same seed, the same slate.

    A ranker picks its best item that is not in the slate yet. One without items left passes.
    """
    rng = np.random.default_rng(seed)
    left: dict[Team, list[Item]] = {"a": list(reversed(a)), "b": list(reversed(b))}
    picks: dict[Item, Team] = {}
    while len(picks) < k and (left["a"] or left["b"]):
        first: Team = "a" if rng.random() < 0.5 else "b"
        order: tuple[Team, Team] = (first, "b" if first == "a" else "a")
        for team in order:
            _pick(team, left[team], picks, k)
    return Draft(tuple(picks), tuple(picks.values()))


def _pick(team: Team, left: list[Item], picks: dict[Item, Team], k: int) -> None:
    while left and left[-1] in picks:
        left.pop()
    if left and len(picks) < k:
        picks[left.pop()] = team


def credit(draft: Draft[Item], clicked: Set[Item]) -> int:
    """Clicks on b's picks minus clicks on a's. A click on an item that is not in the draft is
    ignored."""
    return sum(
        (1 if team == "b" else -1)
        for item, team in zip(draft.items, draft.teams, strict=True)
        if item in clicked
    )


def preference(users: Sequence[Hashable], credits: Sequence[int], *, seed: int = 0) -> Preference:
    """From one credit per slate; intervals resample users, whose slates are not independent."""
    signs = np.sign(np.asarray(credits, dtype=float))
    codes = np.unique([str(user) for user in users], return_inverse=True)[1]
    count = np.bincount(codes).astype(float)
    mean = np.bincount(codes, signs) / np.maximum(count, 1)
    return Preference(
        difference=paired_bootstrap(mean, count, seed=seed),
        wins={"a": int((signs < 0).sum()), "b": int((signs > 0).sum())},
        slates=len(signs),
    )
