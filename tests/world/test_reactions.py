"""Reactions: configured rates and biases hold, and null worlds have no personal effects."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import MovieLens
from deploy.simulation.queries import legal
from deploy.simulation.reactions import Visit, clicks_query, comes_back, goes_on, watch_slate
from deploy.simulation.truth import WORLD_TASKS, Truth, plant

ALL = np.arange(1682)


@pytest.fixture(scope="module")
def truth(data: MovieLens, world: WorldConfig) -> Truth:
    return plant(data, world, 0)


@pytest.fixture(scope="module")
def null(data: MovieLens, world: WorldConfig) -> Truth:
    return plant(data, world.null(), 0)


def _watch(truth: Truth, user: int, films: np.ndarray, rng: np.random.Generator) -> Visit:
    n = len(films)
    return watch_slate(truth, user, films.tolist(), [60_000] * n, [999] * n, rng)


def _random_visits(truth: Truth, n: int) -> list[Visit]:
    rng = np.random.default_rng(7)
    return [_watch(truth, i % 943, rng.choice(ALL, 10, replace=False), rng) for i in range(n)]


def _logged_plays(truth: Truth, slates: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shown and played counts [U, V] of random slates without position bias."""
    rng = np.random.default_rng(seed)
    shown, played = np.zeros((943, 1682)), np.zeros((943, 1682))
    for user in range(943):
        films = rng.integers(1682, size=slates * 10)
        plays = rng.random(len(films)) < truth.odds(user, films)[:, 0]
        np.add.at(shown[user], films, 1)
        np.add.at(played[user], films[plays], 1)
    return shown, played


def _gain_of_personalisation(truth: Truth) -> np.ndarray:
    """[U] true P(play) of a fitted personal top 10 minus that of the popular top 10.

    The method: play rate per film, plus the user's own surplus per genre, shrunk.
    """
    shown, played = _logged_plays(truth, 40, seed=3)
    popular = (played.sum(0) + 2) / (shown.sum(0) + 10)
    genres = sorted({genre for film in truth.data.films for genre in film.genres})
    has = np.array([[g in film.genres for g in genres] for film in truth.data.films], dtype=float)
    surplus = ((played - shown * popular) @ has) / (shown @ has + 50)
    best = np.argsort(-popular)[:10]
    gains = []
    for user in range(943):
        own = np.argsort(-(popular + has @ surplus[user] / has.sum(1).clip(1)))[:10]
        p = truth.odds(user, ALL)[:, 0]
        gains.append(p[own].mean() - p[best].mean())
    return np.asarray(gains)


def test_random_slates_play_at_the_stated_rate(truth: Truth) -> None:
    visits = _random_visits(truth, 4000)
    plays = sum(len(visit.slots("play")) for visit in visits) / 40_000
    assert plays == pytest.approx(truth.world.rates.play, abs=0.01)


def test_actions_after_a_play_hold_their_stated_rates(truth: Truth) -> None:
    visits = _random_visits(truth, 6000)
    plays = sum(len(visit.slots("play")) for visit in visits)
    for task in WORLD_TASKS[1:]:
        share = sum(len(visit.slots(task)) for visit in visits) / plays
        assert share == pytest.approx(getattr(truth.world.rates, task), rel=0.25)


def test_nothing_follows_without_a_play(truth: Truth) -> None:
    for visit in _random_visits(truth, 500):
        played = set(visit.slots("play"))
        for task in WORLD_TASKS[1:]:
            assert set(visit.slots(task)) <= played
        assert played.isdisjoint(visit.slots("skip"))
        assert visit.slots("shown") == list(range(10))


def test_actions_come_after_their_shown_and_before_the_end(truth: Truth) -> None:
    for visit in _random_visits(truth, 200):
        shown = {a.slot: a.offset_ms for a in visit.actions if a.kind == "shown"}
        for action in visit.actions:
            assert shown[action.slot] <= action.offset_ms <= visit.lasted_ms


def test_upper_slots_are_played_more_by_the_stated_bias_alone(truth: Truth) -> None:
    plays = np.bincount([s for v in _random_visits(truth, 8000) for s in v.slots("play")])
    expected = truth.attention(np.arange(10))
    assert plays / plays.sum() == pytest.approx(expected / expected.sum(), abs=0.015)


def test_without_bias_every_slot_is_alike(null: Truth) -> None:
    plays = np.bincount([s for v in _random_visits(null, 8000) for s in v.slots("play")])
    assert plays / plays.sum() == pytest.approx(np.full(10, 0.1), abs=0.012)


def test_tastes_differ_and_the_null_worlds_do_not(truth: Truth, null: Truth) -> None:
    top = {tuple(np.argsort(-truth.odds(user, ALL)[:, 0])[:3]) for user in range(100)}
    same = {tuple(np.argsort(-null.odds(user, ALL)[:, 0])[:3]) for user in range(100)}
    assert len(top) > 50
    assert len(same) == 1


def test_equal_utilities_leave_nothing_for_personal_weights(null: Truth, truth: Truth) -> None:
    assert np.ptp(null.utilities, axis=0).max() < 1e-6
    assert np.ptp(truth.utilities, axis=0).min() > 0.1
    best = {tuple(np.argsort(-null.expected_utility(u, ALL))[:10]) for u in range(0, 943, 50)}
    assert len(best) == 1


def test_personalisation_gains_in_the_world_and_never_in_the_null_one(
    truth: Truth, null: Truth
) -> None:
    assert _gain_of_personalisation(truth).mean() > 0.01
    gains = _gain_of_personalisation(null)
    assert gains.mean() + 1.96 * gains.std() / np.sqrt(len(gains)) <= 0.0


def test_repeated_exposures_lower_the_odds(truth: Truth) -> None:
    fresh = truth.odds(0, ALL)
    tired = truth.odds(0, ALL, seen=np.full(1682, 2))
    assert (tired < fresh).all()


def test_better_slates_lead_to_more_slates(truth: Truth) -> None:
    rng = np.random.default_rng(0)
    stays = [
        np.mean([goes_on(truth, Visit((), utility, 0), rng) for _ in range(2000)])
        for utility in (0.0, 1.0, 3.0)
    ]
    assert stays == sorted(stays)
    assert stays[2] - stays[0] > 0.2


def test_a_liked_film_brings_back_more_dormant_users(truth: Truth) -> None:
    rng = np.random.default_rng(0)
    worst_best = np.argsort(truth.odds(5, ALL)[:, 0])[[0, -1]]
    back = [
        np.mean([comes_back(truth, 5, [int(film)], rng) for _ in range(1000)])
        for film in worst_best
    ]
    assert back[1] > back[0] + 0.2
    assert not comes_back(truth, 5, [], rng)


def test_a_wanted_query_is_clicked_more_than_a_foreign_one(truth: Truth) -> None:
    rng = np.random.default_rng(0)
    own = legal(truth.data.films[0], truth.world.queries.kinds)[:6]
    clicks = [clicks_query(truth, 3, 0, own, rng) is not None for _ in range(1000)]
    strange = [clicks_query(truth, 3, 0, ["an unrelated query"], rng) for _ in range(200)]
    assert np.mean(clicks) > 0.2
    assert strange == [None] * 200


def test_the_same_seed_plants_the_same_world(truth: Truth, data: MovieLens) -> None:
    again = plant(data, truth.world, 0)
    assert np.array_equal(again.utilities, truth.utilities)
    assert np.array_equal(again.taste.users, truth.taste.users)
    other = plant(data, truth.world, 1)
    assert not np.array_equal(other.utilities, truth.utilities)
