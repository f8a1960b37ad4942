"""A week in a world whose tastes drift: who visits, what they do, and what a slate is worth.

Knows the planted truth. Does not know policies: they get the catalogue and messages.

A user's taste turns from its own vector towards another user's, so that the population's tastes
keep their distribution: users(t) = cos(angle) * own + sin(angle) * other, where the angle grows
evenly from 0 and reaches `turn` radians at the end. Users do not tire of items that they passed over.

The order-weighted reward of an attended item is the sum of its actions, weighted by the shipped
tasks' gains: play 1, long view 1, like 2, follow 3, order 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from deploy.simulation.config import WorldConfig
from deploy.simulation.history import DEFAULT_END_MS, History, history
from deploy.simulation.movielens import MovieLens, drawn_share
from deploy.simulation.reactions import watch_slate
from deploy.simulation.truth import Truth, plant
from models.ranking.tasks import SHIPPED_TASKS
from streams.contract.clock import HOUR_MS
from streams.contract.events import CatalogueItem

SLOTS, STEP_MS, STEPS_A_DAY = 10, 6 * HOUR_MS, 4
START_MS = DEFAULT_END_MS + HOUR_MS
_VISIT_MS = STEP_MS - 90 * 60_000  # visits begin before this, so that their feedback can mature
GAINS = np.array(SHIPPED_TASKS.gains)


@dataclass(frozen=True)
class LoopSize:
    """users: those with the most ratings of the films that are kept. ratings: the fewest of a film.

    steps: of six hours. visit_share: of the users, in each step. turn: radians over all steps.
    """

    users: int = 120
    ratings: int = 20
    steps: int = 28
    visit_share: float = 0.9
    turn: float = math.pi / 3


@dataclass(frozen=True)
class DriftingWorld:
    """U users, V items. past: replayed history. other: int64 [U], towards whose taste each turns."""

    size: LoopSize
    planted: Truth
    past: History
    ratings: pl.DataFrame  # the replayed stars
    other: np.ndarray
    seed: int

    @property
    def user_ids(self) -> tuple[str, ...]:
        return self.planted.people.user_ids

    @property
    def items(self) -> list[CatalogueItem]:
        return self.past.items

    @cached_property
    def item_row(self) -> dict[str, int]:
        return {item.video_id: row for row, item in enumerate(self.items)}

    @cached_property
    def attention(self) -> np.ndarray:
        """float64 [SLOTS]: P(attended | slot)."""
        return self.planted.attention(np.arange(SLOTS))

    @cached_property
    def played(self) -> np.ndarray:
        """bool [U, V]: plays of the history."""
        found = np.zeros((len(self.user_ids), len(self.items)), bool)
        plays = self.past.frame.filter(pl.col("kind") == "play")
        users = [self.planted.user_row[user] for user in plays["user_id"]]
        found[users, [self.item_row[item] for item in plays["video_id"]]] = True
        return found

    def angle(self, step: int) -> float:
        return self.size.turn * step / max(self.size.steps - 1, 1)

    def truth(self, step: int) -> Truth:
        """The truth in one step."""
        own, angle = self.planted.taste.users, self.angle(step)
        turned = math.cos(angle) * own + math.sin(angle) * own[self.other]
        return replace(self.planted, taste=replace(self.planted.taste, users=turned))

    def reward(self, step: int) -> np.ndarray:
        """float64 [U, V]: the expected order-weighted reward of an attended item."""
        truth, every = self.truth(step), np.arange(len(self.items))
        rows = []
        for user in range(len(self.user_ids)):
            p = truth.odds(user, every)
            p[:, 1:] *= p[:, :1]
            rows.append(p @ GAINS)
        return np.array(rows)

    def visits(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Who visits and when: users int64 [N], and times in ms int64 [N], ascending."""
        rng = np.random.default_rng([self.seed, 71, step])
        users = np.flatnonzero(rng.random(len(self.user_ids)) < self.size.visit_share)
        times = np.sort(rng.integers(0, _VISIT_MS, len(users)))
        return rng.permutation(users), START_MS + step * STEP_MS + times

    def watch(
        self, truth: Truth, user: int, slate: Sequence[int], step: int
    ) -> list[tuple[int, str, int, int | None, int | None]]:
        """What the user does: (slot, kind, offset in ms, dwell in ms, amount in cents).

        The draws belong to user and step, so two arms with the same slate see the same reaction.
        """
        rng = np.random.default_rng([self.seed, 72, step, user])
        shown = [self.items[row] for row in slate]
        visit = watch_slate(
            truth,
            user,
            slate,
            [item.duration_ms for item in shown],
            [item.price_cents for item in shown],
            rng,
        )
        return [(a.slot, a.kind, a.offset_ms, a.dwell_ms, a.amount_cents) for a in visit.actions]

    def history_messages(self) -> Iterator[dict[str, Any]]:
        return self.past.events()


def make(config: WorldConfig, data: MovieLens, size: LoopSize, seed: int) -> DriftingWorld:
    """Draws the world; the same arguments give the same one."""
    part = _smaller(data, size)
    planted = plant(part, config, seed)
    past = history(seed, world=config, data=part, crowd=planted.people)
    ratings = drawn_share(part, config.replay.share, seed).ratings
    order = np.random.default_rng([seed, 70]).permutation(len(planted.people.user_ids))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    return DriftingWorld(size, planted, past, ratings, other, seed)


def _smaller(data: MovieLens, size: LoopSize) -> MovieLens:
    """The films with enough ratings, and the users who rated most of them."""
    counts = data.ratings.group_by("video_id").len().filter(pl.col("len") >= size.ratings)
    ratings = data.ratings.join(counts.select("video_id"), on="video_id", how="semi")
    most = ratings.group_by("user_id").len().sort("len", "user_id").tail(size.users)
    ratings = ratings.join(most.select("user_id"), on="user_id", how="semi")
    ratings = ratings.sort("time_ms", "user_id", "video_id")
    kept = set(ratings["video_id"])
    return MovieLens(tuple(film for film in data.films if film.video_id in kept), ratings)
