"""The simulated users: how each one asks, follows and orders.

Knows traits drawn from a seed and genre tastes from the ratings. They are planted truth,
written only to the truth file (`deploy.simulation.truth`). Does not know events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import MovieLens
from deploy.simulation.queries import DIALECTS, GENRES, Speaker


@dataclass(frozen=True)
class People:
    """U users. Arrays are float64 [U] with mean near 1 unless said otherwise."""

    user_ids: tuple[str, ...]
    follow: np.ndarray
    order: np.ndarray
    curiosity: np.ndarray
    speakers: tuple[Speaker, ...]

    def row(self) -> dict[str, int]:
        return {user_id: index for index, user_id in enumerate(self.user_ids)}


def people(data: MovieLens, world: WorldConfig, seed: int) -> People:
    """Draws every user's traits; the same seed gives the same people."""
    rng = np.random.default_rng([seed, 1])
    user_ids = tuple(data.ratings["user_id"].unique().sort().to_list())
    n = len(user_ids)
    tastes = genre_tastes(data, user_ids)
    mixes = rng.dirichlet(world.queries.kind_mix, n)
    dialects = rng.integers(DIALECTS, size=n)
    return People(
        user_ids,
        follow=_gamma(rng, world.traits.follow_shape, n),
        order=_gamma(rng, world.traits.order_shape, n),
        curiosity=_gamma(rng, world.traits.curiosity_shape, n),
        speakers=tuple(Speaker(mixes[u], int(dialects[u]), tastes[u]) for u in range(n)),
    )


def genre_tastes(data: MovieLens, user_ids: tuple[str, ...]) -> np.ndarray:
    """float64 [U, len(GENRES)]: mean rating above the user's own mean per genre, shrunk by
    five pseudo-ratings, so that a genre seen once has little weight."""
    row = {user_id: index for index, user_id in enumerate(user_ids)}
    users = np.array([row[u] for u in data.ratings["user_id"]], dtype=np.int64)
    stars = data.ratings["rating"].to_numpy().astype(np.float64)
    mean = np.bincount(users, stars, len(row)) / np.maximum(np.bincount(users, None, len(row)), 1)
    genres = _genre_matrix(data)
    total = np.zeros((len(row), len(GENRES)))
    count = np.zeros_like(total)
    np.add.at(total, users, genres * (stars - mean[users])[:, None])
    np.add.at(count, users, genres)
    return total / (count + 5.0)


def _genre_matrix(data: MovieLens) -> np.ndarray:
    """float64 [ratings, len(GENRES)], 1 where the rated film has the genre."""
    rows = {film.video_id: [float(genre in film.genres) for genre in GENRES] for film in data.films}
    return np.array([rows[video_id] for video_id in data.ratings["video_id"]])


def _gamma(rng: np.random.Generator, shape: float, n: int) -> np.ndarray:
    return rng.gamma(shape, 1 / shape, n)
