"""Tastes of users: factors fitted on the ratings, and parts that ratings do not show.

Knows users, films and stars. The result is planted truth, written only to the truth file.
Does not know events. `config.toml` states the share of each part in the variance:

- fitted: biased matrix factorisation by alternating least squares (Koren, Bell, Volinsky,
  Computer 42(8), 2009), all users of a sweep solved in one call. Low-rank.
- hidden: factors drawn by seed. Low-rank, and no rating shows them.
- neighbourhoods: the user's own ratings of a film's nearest films. Not low-rank.
- moods: genres that a user wants in one half of the day. Drawn by seed.
- authors: favourite studios. Drawn by seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.simulation.config import TasteConfig, WorldConfig
from deploy.simulation.movielens import MovieLens, studios

_FAVOURITES = 5  # studios a user
_SHRINKAGE = 20.0  # pseudo-users in the similarity of two films: one shared fan says little


@dataclass(frozen=True)
class Moods:
    """users float64 [U, 2, G]: wanted genres in each half of the day; films float64 [V, G];
    starts int64 [U]: the hour at which the user's first half begins."""

    users: np.ndarray
    films: np.ndarray
    starts: np.ndarray

    def liking(self, user: int, films: np.ndarray, hour: int | None) -> np.ndarray:
        """float64 [len(films)]; the mean of both halves where no hour is given."""
        if hour is None:
            return np.asarray(self.films[films] @ self.users[user].mean(axis=0))
        half = (hour - int(self.starts[user])) % 24 // 12
        return np.asarray(self.films[films] @ self.users[user, half])


@dataclass(frozen=True)
class Taste:
    """U users, V films, k factors; all float64.

    main [V]: quality and popularity for all users, mean 0 and deviation 1 over films.
    users [U, k], films [V, k]: their product is the low-rank personal part. table [U, V]: the
        part without factors. All parts together have mean 0 over each film's users and
        deviation 1 over all pairs.
    """

    main: np.ndarray
    users: np.ndarray
    films: np.ndarray
    table: np.ndarray | None = None
    moods: Moods | None = None

    def personal(self, user: int, films: np.ndarray, hour: int | None = None) -> np.ndarray:
        """float64 [len(films)]: the user's own part of the liking of these films at this hour."""
        liking = np.asarray(self.films[films] @ self.users[user])
        if self.table is not None:
            liking = liking + self.table[user, films]
        if self.moods is not None:
            liking = liking + self.moods.liking(user, films, hour)
        return liking


def fit(data: MovieLens, user_ids: tuple[str, ...], world: WorldConfig, seed: int) -> Taste:
    """Fits all ratings and draws the parts that they do not show; takes seconds on ML-100K."""
    rules = world.taste
    stars, rated = _matrix(data, user_ids)
    baseline, quality = _biases(stars, rated, rules.ridge)
    left = (stars - baseline) * rated
    parts = [_scaled(*_factors(left, rated, rules, seed), rules.fitted)]
    if rules.hidden:
        parts.append(_scaled(*_hidden_factors(rated.shape, rules, seed), rules.hidden))
    popular = _standard(np.log1p(rated.sum(axis=0)))
    return Taste(
        _standard(_standard(quality) + popular),
        np.hstack([users for users, _ in parts]),
        np.hstack([films for _, films in parts]),
        _table(data, left, rated, world, seed),
        _moods(data, len(user_ids), rules.moods, seed) if rules.moods else None,
    )


def _factors(
    left: np.ndarray, rated: np.ndarray, rules: TasteConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Users' and films' factors of the residuals, [U, k] and [V, k]."""
    rng = np.random.default_rng([seed, 4])
    films = rng.normal(0, 0.1, (rated.shape[1], rules.factors))
    users = np.zeros((rated.shape[0], rules.factors))
    for _ in range(rules.sweeps):
        users = _solve(left, rated, films, rules.ridge)
        films = _solve(left.T, rated.T, users, rules.ridge)
    return users, films


def _hidden_factors(
    shape: tuple[int, ...], rules: TasteConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 9])
    return (
        rng.normal(size=(shape[0], rules.hidden_factors)),
        rng.normal(size=(shape[1], rules.hidden_factors)),
    )


def _scaled(users: np.ndarray, films: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors whose product has mean 0 over users and this variance over all pairs."""
    users = users - users.mean(axis=0)
    scale = float((users @ films.T).std()) or 1.0
    return users * (max(share, 0.0) ** 0.5 / scale), films


def _table(
    data: MovieLens, left: np.ndarray, rated: np.ndarray, world: WorldConfig, seed: int
) -> np.ndarray | None:
    """float64 [U, V]: the parts without factors, or None in a low-rank world."""
    rules, parts = world.taste, []
    if rules.neighbourhoods:
        near = _neighbourhoods(left, rated, rules.neighbours)
        parts.append(_of_variance(near, rules.neighbourhoods))
    if rules.authors:
        own = _favourite_studios(data, len(left), world.replay.studio_films, seed)
        parts.append(_of_variance(own, rules.authors))
    return sum(parts[1:], parts[0]) if parts else None


def _neighbourhoods(left: np.ndarray, rated: np.ndarray, neighbours: int) -> np.ndarray:
    """float64 [U, V]: each user's mean residual over the films nearest to each film."""
    norm = np.sqrt((left**2).sum(axis=0)) + 1e-9
    both = rated.T @ rated
    near = (left.T @ left) / np.outer(norm, norm) * both / (both + _SHRINKAGE)
    np.fill_diagonal(near, 1.0)
    least = np.partition(near, -neighbours, axis=1)[:, -neighbours][:, None]
    near = np.where((near >= least) & (near > 0), near, 0.0)
    return np.asarray((left @ near.T) / (rated @ near.T + 1.0))


def _favourite_studios(data: MovieLens, users: int, size: int, seed: int) -> np.ndarray:
    """float64 [U, V]: 1 for films of the user's favourite studios, else 0."""
    studio_of = studios(data.films, size)
    names = sorted(set(studio_of.values()))
    code = {name: number for number, name in enumerate(names)}
    film_studio = np.asarray([code[studio_of[film.video_id]] for film in data.films])
    rng = np.random.default_rng([seed, 10])
    likes = np.zeros((users, len(names)))
    for user in range(users):
        likes[user, rng.choice(len(names), min(_FAVOURITES, len(names)), replace=False)] = 1.0
    return likes[:, film_studio]


def _moods(data: MovieLens, users: int, share: float, seed: int) -> Moods:
    genres = sorted({genre for film in data.films for genre in film.genres})
    has = np.asarray([[float(name in film.genres) for name in genres] for film in data.films])
    films = has / np.maximum(has.sum(axis=1, keepdims=True), 1.0) ** 0.5
    rng = np.random.default_rng([seed, 12])
    wanted = rng.normal(size=(users, 2, len(genres)))
    wanted -= wanted.mean(axis=0)
    scale = float((wanted @ films.T).std()) or 1.0
    return Moods(wanted * (share**0.5 / scale), films, rng.integers(24, size=users))


def _of_variance(values: np.ndarray, share: float) -> np.ndarray:
    """The values with mean 0 over users and this variance over all pairs."""
    centred = values - values.mean(axis=0)
    return np.asarray(centred * (share**0.5 / (float(centred.std()) or 1.0)))


def _matrix(data: MovieLens, user_ids: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """stars and rated, both float64 [U, V], zero where there is no rating."""
    row = {user_id: index for index, user_id in enumerate(user_ids)}
    column = {film.video_id: index for index, film in enumerate(data.films)}
    users = [row[user_id] for user_id in data.ratings["user_id"]]
    films = [column[video_id] for video_id in data.ratings["video_id"]]
    stars = np.zeros((len(row), len(column)))
    rated = np.zeros_like(stars)
    stars[users, films] = data.ratings["rating"].to_numpy()
    rated[users, films] = 1.0
    return stars, rated


def _biases(stars: np.ndarray, rated: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """The prediction without factors [U, V], and each film's bias [V]."""
    mean = stars.sum() / rated.sum()
    film = ((stars - mean) * rated).sum(axis=0) / (rated.sum(axis=0) + ridge)
    user = ((stars - mean - film) * rated).sum(axis=1) / (rated.sum(axis=1) + ridge)
    return mean + film + user[:, None], film


def _solve(left: np.ndarray, rated: np.ndarray, other: np.ndarray, ridge: float) -> np.ndarray:
    """float64 [N, k]: ridge regressions of each row of `left` on the factors it has seen."""
    k = other.shape[1]
    outer = (other[:, :, None] * other[:, None, :]).reshape(len(other), k * k)
    gram = (rated @ outer).reshape(-1, k, k) + ridge * np.eye(k)
    return np.asarray(np.linalg.solve(gram, (left @ other)[:, :, None])[:, :, 0])


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / (values.std() or 1.0))
