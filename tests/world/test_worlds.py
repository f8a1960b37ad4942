"""The shipped worlds: what their tastes are made of, and what the replayed ratings reveal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deploy.simulation
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import MovieLens
from deploy.simulation.truth import Truth, plant

FOLDER = Path(deploy.simulation.__file__).with_name("worlds")
ALL = np.arange(1682)


def _world(name: str) -> WorldConfig:
    return WorldConfig.load(FOLDER / f"{name}.toml")


def _personal(truth: Truth, hour: int | None = None) -> np.ndarray:
    """float64 [U, V]"""
    users = range(len(truth.people.user_ids))
    return np.array([truth.taste.personal(user, ALL, hour) for user in users])


def _with_taste(world: WorldConfig, **shares: float) -> WorldConfig:
    return world.model_copy(update={"taste": world.taste.model_copy(update=shares)})


@pytest.fixture(scope="module")
def moods(data: MovieLens) -> Truth:
    return plant(data, _world("moods"), 0)


@pytest.fixture(scope="module")
def headline(data: MovieLens, world: WorldConfig) -> Truth:
    return plant(data, world, 0)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.toml")))
def test_every_shipped_world_can_be_read(name: str) -> None:
    assert _world(name) != WorldConfig.load()


def test_a_world_states_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "default"\n[replay]\nshare = 0.25\n')
    mine, usual = WorldConfig.load(path), WorldConfig.load()
    assert mine.replay.share == 0.25
    assert mine.model_copy(update={"replay": usual.replay}) == usual


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('extends = "default"\n[taste]\nrank = 3\n', "rank"),
        ('extends = "default"\n[taste]\nhidden = 0.7\nauthors = 0.7\n', "at most 1"),
        ('extends = "other"\n', "extends"),
    ],
)
def test_an_error_names_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        WorldConfig.load(path)


def test_the_personal_part_has_one_scale_in_every_world(headline: Truth, moods: Truth) -> None:
    for truth in (headline, moods):
        assert _personal(truth, 7).std() == pytest.approx(1.0, abs=0.02)


def test_the_hidden_share_is_not_in_the_fitted_factors(data: MovieLens, world: WorldConfig) -> None:
    whole = _personal(plant(data, world, 0)).ravel()
    shown = _personal(plant(data, _with_taste(world, hidden=0.0), 0)).ravel()
    explained = np.corrcoef(whole, shown)[0, 1] ** 2
    assert explained == pytest.approx(1 - world.taste.hidden, abs=0.05)


def test_only_the_moods_world_is_not_low_rank(headline: Truth, moods: Truth) -> None:
    def share_of_twenty(truth: Truth) -> float:
        energy = np.linalg.svd(_personal(truth, 7), compute_uv=False) ** 2
        return float(energy[:20].sum() / energy.sum())

    assert share_of_twenty(headline) > 0.999
    assert share_of_twenty(moods) < 0.8


def test_moods_change_with_the_hour_and_only_where_there_are_any(
    headline: Truth, moods: Truth
) -> None:
    assert np.array_equal(headline.odds(0, ALL, hour=3), headline.odds(0, ALL, hour=15))
    start = int(moods.taste.moods.starts[0])  # type: ignore[union-attr]
    first = moods.odds(0, ALL, hour=start)
    assert np.array_equal(first, moods.odds(0, ALL, hour=(start + 11) % 24))
    assert not np.array_equal(first, moods.odds(0, ALL, hour=(start + 12) % 24))


def test_the_stated_play_rate_holds_with_moods(moods: Truth) -> None:
    rng = np.random.default_rng(0)
    plays = [
        moods.odds(user, rng.integers(1682, size=40), hour=int(rng.integers(24)))[:, 0].mean()
        for user in range(943)
    ]
    attended = moods.attention(np.arange(10)).mean()
    assert np.mean(plays) * attended == pytest.approx(moods.world.rates.play, abs=0.004)


def test_all_users_like_the_same_in_the_null_world(data: MovieLens) -> None:
    null = plant(data, _world("null"), 0)
    best = {tuple(np.argsort(-null.expected_utility(user, ALL))[:10]) for user in range(0, 943, 40)}
    assert len(best) == 1
