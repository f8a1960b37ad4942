"""Laws of drawn weights: samples of the policy's Dirichlet, on the simplex, with exact density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ranking.grade import policy as grade
from models.ranking.grade.dirichlet import draw_weights, log_density

ALPHA = np.array([4.0, 8.0, 16.0, 4.0, 8.0], np.float32)


@settings(max_examples=200, deadline=None)
@given(
    alpha=st.lists(st.floats(grade.MIN_ALPHA, 500), min_size=2, max_size=8),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_draw_is_on_the_simplex_and_its_density_equals_torchs(
    alpha: list[float], seed: int
) -> None:
    concentration = np.array(alpha, np.float32)
    drawn = draw_weights(concentration, 1.0, seed)
    assert drawn is not None
    assert (drawn.weights > 0).all()
    assert drawn.weights.sum() == pytest.approx(1, abs=1e-6)
    exact = torch.from_numpy(concentration.astype(float))
    weights = torch.from_numpy(drawn.weights.astype(float))
    theirs = float(grade.log_density(exact, weights / weights.sum()))
    assert np.isfinite(drawn.log_density)
    assert drawn.log_density == pytest.approx(theirs, rel=1e-4, abs=1e-3)


def test_draws_have_the_dirichlets_mean_and_variance() -> None:
    drawn = np.stack([draw_weights(ALPHA, 1.0, seed).weights for seed in range(20_000)])  # type: ignore[union-attr]
    mean, total = ALPHA / ALPHA.sum(), ALPHA.sum()
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.003)
    np.testing.assert_allclose(drawn.var(0), mean * (1 - mean) / (total + 1), rtol=0.05)


def test_the_configured_share_of_seeds_is_drawn_and_draws_are_deterministic() -> None:
    found = [draw_weights(ALPHA, 0.1, seed) for seed in range(20_000)]
    assert np.mean([each is not None for each in found]) == pytest.approx(0.1, abs=0.01)
    assert not any(draw_weights(ALPHA, 0.0, seed) for seed in range(1_000))
    for seed, each in enumerate(found[:200]):
        again = draw_weights(ALPHA, 0.1, seed)
        assert (each is None) == (again is None)
        if each is not None and again is not None:
            np.testing.assert_array_equal(each.weights, again.weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_an_invalid_concentration_gives_no_draw(bad: float) -> None:
    assert draw_weights(np.array([1.0, bad, 1.0], np.float32), 1.0, 3) is None


def test_the_density_falls_away_from_the_mean() -> None:
    mean = ALPHA / ALPHA.sum()
    assert log_density(ALPHA, mean) > log_density(ALPHA, np.full(5, 0.2))
