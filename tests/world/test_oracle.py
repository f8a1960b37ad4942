"""The oracle's slate is the best one that the feed may show, and it knows what was played."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.simulation.config import WorldConfig
from deploy.simulation.history import History
from deploy.simulation.movielens import MovieLens
from deploy.simulation.oracle import Oracle
from deploy.simulation.truth import Truth, plant

K = 10


@pytest.fixture(scope="module")
def truth(data: MovieLens, world: WorldConfig) -> Truth:
    return plant(data, world, 0)


@pytest.fixture
def oracle(truth: Truth, past: History) -> Oracle:
    return Oracle(truth, past)


def _expected(truth: Truth, user: int, films: np.ndarray) -> float:
    return float(truth.attention(np.arange(len(films))) @ truth.odds(user, films)[:, 0])


def _unplayed(truth: Truth, past: History, user: int) -> np.ndarray:
    own = past.frame.filter(
        (past.frame["user_id"] == truth.people.user_ids[user]) & (past.frame["kind"] == "play")
    )
    played = [truth.film_row[video_id] for video_id in own["video_id"]]
    return np.setdiff1d(np.arange(len(truth.data.films)), played)


def test_no_slate_of_unplayed_films_is_expected_to_get_more_clicks(
    oracle: Oracle, truth: Truth, past: History
) -> None:
    rng, unseen = np.random.default_rng(0), np.zeros(len(truth.data.films), np.int64)
    for user in range(0, 900, 90):
        films = _unplayed(truth, past, user)
        best = oracle.expected_clicks(user, K, unseen)
        by_play = films[np.argsort(-truth.odds(user, films)[:, 0])][:K]
        assert best == pytest.approx(_expected(truth, user, by_play))
        for _ in range(20):
            assert _expected(truth, user, rng.choice(films, K, replace=False)) < best
        assert _expected(truth, user, by_play[::-1]) < best


def test_a_played_film_is_not_shown_again_and_a_seen_one_tires(
    oracle: Oracle, truth: Truth, past: History
) -> None:
    seen = np.zeros(len(truth.data.films), np.int64)
    films = _unplayed(truth, past, 0)
    favourite = int(films[truth.odds(0, films)[:, 0].argmax()])
    first = oracle.expected_clicks(0, K, seen)
    seen[favourite] = 3
    tired = oracle.expected_clicks(0, K, seen)
    oracle.play(0, [favourite])
    assert oracle.expected_clicks(0, K, seen) <= tired < first
