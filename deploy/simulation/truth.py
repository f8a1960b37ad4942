"""The planted truth of one world: tastes, effects of films, utilities, intercepts.

Knows all parameters of the crowd's decisions. They are written to a folder of their own in
the home, in columns that begin with `truth_`; a test ensures that no package but `deploy`
reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from deploy.simulation import taste
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import MovieLens
from deploy.simulation.people import People, people
from deploy.simulation.taste import Taste

WORLD_TASKS = ("play", "long_view", "like", "follow", "order")
FOLDER = "truth"  # under the stack's home
_LEAST_TRAIT = 0.02  # log-odds need a floor under a Gamma draw near zero
_SAMPLED_FILMS = 200  # random films per user on which intercepts are solved


@dataclass(frozen=True)
class Truth:
    """U users, V films, T = len(WORLD_TASKS); arrays float64.

    gifts [V, T]: a film's own log-odds for each action, unit deviation.
    utilities [U, T]: w*, on the simplex. intercepts [T]: solved for the stated rates.
    """

    world: WorldConfig
    data: MovieLens
    people: People
    taste: Taste
    gifts: np.ndarray
    utilities: np.ndarray
    intercepts: np.ndarray

    @cached_property
    def film_row(self) -> dict[str, int]:
        return {film.video_id: index for index, film in enumerate(self.data.films)}

    @cached_property
    def user_row(self) -> dict[str, int]:
        return self.people.row()

    @cached_property
    def traits(self) -> np.ndarray:
        """float64 [U, T]: multipliers of each action's odds; 1 without a trait."""
        return _traits(self.people)

    def odds(
        self,
        user: int,
        films: np.ndarray,
        seen: np.ndarray | None = None,
        hour: int | None = None,
    ) -> np.ndarray:
        """float64 [len(films), T]: P(play | attended), then P(action | played).

        `seen` counts earlier exposures of each film; `hour` of the day matters where users
        have moods.
        """
        logits = self.intercepts + _logits(
            self.world, self.taste, self.gifts, self.traits, user, films, hour
        )
        if seen is not None:
            logits = logits - self.world.effects.fatigue * np.minimum(seen, 3)[:, None]
        return sigmoid(logits)

    def attention(self, slots: np.ndarray) -> np.ndarray:
        """float64: P(attended | slot)."""
        return np.asarray((1.0 + slots) ** -self.world.position.bias)

    def expected_utility(self, user: int, films: np.ndarray, hour: int | None = None) -> np.ndarray:
        """float64 [len(films)]: the user's expected gain if the film is attended, each action
        weighted by w* over the action's population rate."""
        p = self.odds(user, films, hour=hour)
        p[:, 1:] *= p[:, :1]
        return np.asarray(p @ (self.utilities[user] / unit_rates(self.world)))

    def write(self, home: Path) -> Path:
        """Writes `users.parquet` and `films.parquet`; returns their folder."""
        folder = home / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        users: dict[str, object] = {"truth_user_id": self.people.user_ids}
        users |= {f"truth_utility_{t}": self.utilities[:, i] for i, t in enumerate(WORLD_TASKS)}
        users |= {f"truth_trait_{t}": self.traits[:, i] for i, t in enumerate(WORLD_TASKS)}
        users["truth_taste"] = self.taste.users
        if self.taste.table is not None:
            users["truth_table"] = self.taste.table
        if self.taste.moods is not None:
            users |= {f"truth_mood_{i}": self.taste.moods.users[:, i] for i in range(2)}
            users["truth_mood_start"] = self.taste.moods.starts
        films: dict[str, object] = {"truth_video_id": [film.video_id for film in self.data.films]}
        films |= {f"truth_gift_{t}": self.gifts[:, i] for i, t in enumerate(WORLD_TASKS)}
        films |= {"truth_main": self.taste.main, "truth_taste": self.taste.films}
        pl.DataFrame(users).write_parquet(folder / "users.parquet")
        pl.DataFrame(films).write_parquet(folder / "films.parquet")
        return folder


def plant(data: MovieLens, world: WorldConfig, seed: int) -> Truth:
    """Draws a world; the same data, constants and seed give the same one."""
    crowd = people(data, world, seed)
    liking = taste.fit(data, crowd.user_ids, world, seed)
    rng = np.random.default_rng([seed, 5])
    gifts = rng.normal(size=(len(data.films), len(WORLD_TASKS)))
    utilities = _utilities(crowd, world, rng)
    intercepts = _intercepts(world, liking, gifts, _traits(crowd), rng)
    return Truth(world, data, crowd, liking, gifts, utilities, intercepts)


def unit_rates(world: WorldConfig) -> np.ndarray:
    """float64 [T]: each action's rate per attended film on random slates."""
    rates = world.rates
    of_plays = (1.0, rates.long_view, rates.like, rates.follow, rates.order)
    return np.asarray([play_when_attended(world) * share for share in of_plays])


def play_when_attended(world: WorldConfig) -> float:
    """P(play | attended). The configured play rate also counts unattended slots."""
    slots = np.arange(world.position.slots)
    return float(world.rates.play / ((1.0 + slots) ** -world.position.bias).mean())


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def _traits(crowd: People) -> np.ndarray:
    one = np.ones(len(crowd.user_ids))
    return np.stack([one, one, one, crowd.follow, crowd.order], axis=1)


def _utilities(crowd: People, world: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    rules = world.utility
    traits = np.maximum(_traits(crowd), _LEAST_TRAIT)
    noise = np.exp(rules.spread * rng.normal(size=traits.shape))
    raw = np.asarray(rules.base) * traits**rules.link * noise
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def _logits(
    world: WorldConfig,
    liking: Taste,
    gifts: np.ndarray,
    traits: np.ndarray,
    user: int,
    films: np.ndarray,
    hour: int | None = None,
) -> np.ndarray:
    """float64 [len(films), T], without intercepts."""
    effects = world.effects
    personal = world.taste.heterogeneity * liking.personal(user, films, hour)
    shared = np.outer(liking.main[films], effects.main) + gifts[films] * np.asarray(effects.appeal)
    own = np.outer(personal, effects.taste) + np.log(np.maximum(traits[user], _LEAST_TRAIT))
    return np.asarray(shared + own)


def _intercepts(
    world: WorldConfig,
    liking: Taste,
    gifts: np.ndarray,
    traits: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """float64 [T], by bisection: the mean over random pairs equals the configured rate. Actions
    after a play are weighted by the play's odds, since played films are better than average."""

    def sampled(user: int) -> np.ndarray:
        films = rng.integers(len(gifts), size=_SAMPLED_FILMS)
        hour = None if liking.moods is None else int(rng.integers(24))
        return _logits(world, liking, gifts, traits, user, films, hour)

    pairs = np.concatenate([sampled(user) for user in range(len(traits))])
    rates = world.rates
    play = _solve(pairs[:, 0], np.ones(len(pairs)), play_when_attended(world))
    weight = sigmoid(pairs[:, 0] + play)
    later = (rates.long_view, rates.like, rates.follow, rates.order)
    return np.asarray(
        [play, *(_solve(pairs[:, i + 1], weight, rate) for i, rate in enumerate(later))]
    )


def _solve(logits: np.ndarray, weight: np.ndarray, rate: float) -> float:
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        mean = float(np.average(sigmoid(logits + middle), weights=weight))
        low, high = (middle, high) if mean < rate else (low, middle)
    return (low + high) / 2
