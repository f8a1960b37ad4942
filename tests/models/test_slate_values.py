"""Laws of slate values: where their assumptions hold, they find the true value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.worlds.slates import Draws, SlateWorld, slot_chances, small_world, visits
from models.alignment.off_policy import Estimate
from models.alignment.slate_values import (
    LoggedSlates,
    OutsideSupport,
    cascade,
    item_position,
    outside_support,
    pseudoinverse,
    slate_ips,
)

Estimator = Callable[..., Estimate]
CASES: list[tuple[Estimator, Draws, float]] = [
    (item_position, "independent", 1.0),
    (pseudoinverse, "independent", 1.0),
    (cascade, "plackett_luce", 0.5),
    (slate_ips, "plackett_luce", 0.5),
]


def logged(seed: int, draws: Draws, clash: float) -> tuple[LoggedSlates, float]:
    """300 persons' slates under a mild policy, and a sharper policy's true value."""
    world: SlateWorld = replace(small_world(1), clash=clash)
    logging, target = world.attraction, 2.5 * world.attraction
    seen = visits(world, logging, draws, persons=300, each=4, seed=seed)
    chances = [slot_chances(p[seen.kind], seen.items, draws) for p in (logging, target)]
    return LoggedSlates(seen.persons, seen.clicks, *chances), world.value(target, draws)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("estimator", "draws", "clash"), CASES)
def test_nine_of_ten_intervals_contain_the_truth_where_the_assumption_holds(
    estimator: Estimator, draws: Draws, clash: float, normalised: bool
) -> None:
    held = []
    for seed in range(30):
        slates, truth = logged(seed, draws, clash)
        low, high = estimator(slates, normalised=normalised, seed=seed).interval
        held.append(low <= truth <= high)
        assert high - low < 0.25 * truth
    assert np.mean(held) >= 0.9 - 1 / 30


def test_the_log_mean_lies_outside_the_interval_of_the_truth() -> None:
    slates, truth = logged(0, "independent", 1.0)
    found = item_position(slates)
    assert found.interval[0] <= truth <= found.interval[1]
    assert found.logged_value < found.interval[0]
    assert found.difference[1] > 0


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("estimator", [slate_ips, cascade, item_position, pseudoinverse])
def test_the_logging_policy_has_the_logged_value(estimator: Estimator, normalised: bool) -> None:
    slates, _ = logged(3, "independent", 1.0)
    same = replace(slates, target=slates.logged)
    found = estimator(same, normalised=normalised)
    assert found.value == pytest.approx(slates.reward.sum(1).mean())
    assert found.difference == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.effective_n == pytest.approx(len(slates.users))


def test_a_stronger_assumption_leaves_more_effective_slates() -> None:
    slates, _ = logged(0, "independent", 1.0)
    assert item_position(slates).effective_n > slate_ips(slates).effective_n


def test_padding_a_short_slate_changes_nothing() -> None:
    slates, _ = logged(0, "independent", 1.0)
    one = np.ones((len(slates.users), 1))
    padded = LoggedSlates(
        slates.users,
        np.hstack([slates.reward, 0 * one]),
        np.hstack([slates.logged, one]),
        np.hstack([slates.target, one]),
    )
    for estimator in (slate_ips, cascade, item_position, pseudoinverse):
        assert estimator(padded).value == pytest.approx(estimator(slates).value)


def test_an_undrawn_slate_is_refused() -> None:
    with pytest.raises(OutsideSupport, match="leave out slates"):
        LoggedSlates(np.zeros(1), np.ones((1, 2)), np.array([[0.5, 0.0]]), np.ones((1, 2)))


def test_a_target_outside_the_log_is_refused_with_its_share() -> None:
    target = np.array([[0.5, 0.25, 0.25]])
    assert outside_support(np.array([[0.6, 0.2, 0.2]]), target) == 0
    with pytest.raises(OutsideSupport, match=r"25\.0%"):
        outside_support(np.array([[0.6, 0.4, 0.0]]), target)


@pytest.mark.parametrize("draws", ["independent", "plackett_luce"])
def test_the_worlds_exact_value_is_the_mean_of_many_visits(draws: Draws) -> None:
    world = replace(small_world(4), clash=0.3)
    seen = visits(world, world.attraction, draws, persons=40_000, each=1, seed=0)
    mean, error = seen.clicks.sum(1).mean(), seen.clicks.sum(1).std() / 200
    assert mean == pytest.approx(world.value(world.attraction, draws), abs=4 * error)
