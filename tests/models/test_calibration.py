"""Laws of calibration: true probabilities have no error, inflated ones their excess."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.calibration import reliability


def test_true_probabilities_have_nearly_no_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(1, 8, 50_000)
    curve = reliability(p, rng.random(len(p)) < p)
    assert curve.ece < 0.005
    assert (np.diff(curve.predicted) > 0).all()
    assert curve.count.sum() == len(p)


def test_a_constant_excess_is_the_error() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.1, 0.5, 50_000)
    assert reliability(p + 0.3, rng.random(len(p)) < p).ece == pytest.approx(0.3, abs=0.01)


def test_fewer_predictions_than_bins_make_fewer_bins() -> None:
    assert len(reliability(np.array([0.2, 0.4]), np.array([False, True])).count) == 2
    assert np.isnan(reliability(np.zeros(0), np.zeros(0, bool)).ece)
