"""Laws of tests that are read at any time: error rates over all looks, and what they find.

Short forms of `python -m benchmarks experiments`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.experiments import (
    Traffic,
    called_different,
    equal_stops,
    first_stop,
    harmed,
    ratio_alarm,
    simulate,
    t_test_differs,
)
from models.experiments.sequential import ArmSums, boundary, difference, mean, sample_ratio

SIZES = np.geomspace(100, 20_000, 30).astype(int)


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_equal_arms_are_hardly_ever_called_different_however_often_one_looks(share: float) -> None:
    runs = 120
    found = equal_stops(Traffic(share=share), runs, called_different)
    assert found * runs <= 5  # at a rate of 0.01, more than 5 of 120 has a chance of 0.002


def test_a_test_for_one_look_fails_where_the_sequence_holds() -> None:
    """The simulation would show a wrong error rate."""
    assert equal_stops(Traffic(), 120, t_test_differs) > 0.02


@pytest.mark.parametrize("lost", [0.5, 1.0])
def test_a_harmful_canary_is_stopped_soon_even_if_it_has_no_reward_at_all(lost: float) -> None:
    traffic = Traffic(20_000, 5.0, share=0.05, lift=-lost)
    for seed in range(5):
        looks = simulate(traffic, seed)
        at = first_stop(looks, harmed)
        assert at is not None
        assert looks.slates[at][looks.treated].sum() <= 2_000


def test_an_interval_holds_the_truth_and_narrows() -> None:
    looks = simulate(Traffic(lift=0.2, users=20_000), 3)
    early, late = (
        difference(looks.sums(n, False), looks.sums(n, True), level=0.05, tight_at=20_000)
        for n in (10, 49)
    )
    assert late.high - late.low < early.high - early.low
    assert late.low < 0.06 < late.high


def test_few_users_or_none_decide_nothing() -> None:
    none = ArmSums(np.zeros(0), np.zeros(0), 0.0)
    few = ArmSums(np.ones(30), np.ones(30), 30.0)
    assert math.isnan(difference(none, few, level=0.05, tight_at=100).value)
    found = difference(few, few, level=0.05, tight_at=100)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert mean(few, level=0.05, tight_at=100).high == math.inf


def test_the_boundary_is_tightest_for_the_estimate_about_where_it_was_asked_to_be() -> None:
    times = np.geomspace(10, 1e7, 400)
    over = [boundary(t, level=0.05, tight_at=20_000) for t in times]
    assert 5_000 < times[int(np.argmin(over))] < 80_000


def test_right_shares_raise_no_alarm_and_wrong_ones_do() -> None:
    assert [ratio_alarm(0.5, seed, SIZES) for seed in range(100)].count(None) >= 99
    assert all(ratio_alarm(0.45, seed, SIZES) for seed in range(10))
    assert sample_ratio([0, 0], [0.5, 0.5]).p_value == 1.0
    assert sample_ratio([95, 5], [0.95, 0.05]).p_value == 1.0
    assert sample_ratio([5_000, 3_000], [0.5, 0.5]).mismatch()
