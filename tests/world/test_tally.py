"""The tally: rates are ratios of sums, intervals cover, phases are counted separately."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploy.simulation.tally import NO_RANKER, SlateGroup, Tally, rate, rate_difference


def _reply(surface: str, *stages: str) -> dict[str, object]:
    fallbacks = [{"stage": stage, "reason": "timeout"} for stage in stages]
    return {"surface": surface, "fallbacks": fallbacks}


def test_a_rate_is_actions_over_shown() -> None:
    found = rate(np.array([1.0, 3.0]), np.array([10.0, 10.0]))
    assert found.value == 0.2
    assert found.n == 20
    assert found.low <= found.value <= found.high


def test_nothing_shown_is_no_rate() -> None:
    assert math.isnan(rate(np.zeros(0), np.zeros(0)).value)


def test_the_interval_covers_the_truth_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        p = rng.beta(2, 6, 300)  # users differ: the interval must be over users
        shown = rng.integers(5, 40, 300)
        found = rate(rng.binomial(shown, p).astype(float), shown.astype(float), seed=trial)
        inside += found.low <= 0.25 <= found.high
    assert 0.90 <= inside / 200 <= 0.99


def test_phases_and_releases_are_counted_separately() -> None:
    tally = Tally()
    tally.watched(SlateGroup("before", "1"), "u1", [10, 2, 1, 5])
    tally.watched(SlateGroup("before", "1"), "u1", [10, 4, 0, 5])
    tally.watched(SlateGroup("after", "1"), "u1", [10, 9, 0, 5])
    tally.watched(SlateGroup("after", "2"), "u1", [10, 1, 0, 5])
    assert tally.click_rate(SlateGroup("before", "1")).value == 0.3
    assert tally.order_rate(SlateGroup("before", "1")).value == 0.05
    assert tally.click_rate(SlateGroup("after", "2")).value == 0.1
    assert tally.click_rate(SlateGroup("before", "2")).n == 0


def test_arms_are_compared_only_while_a_ranker_is_live() -> None:
    tally = Tally()
    for version, plays in ((NO_RANKER, 10), ("1", 2), ("2", 4)):
        for user in range(20):
            tally.watched(SlateGroup("p", version, "old"), f"a{user}", [10, plays, 0, 6.0])
            tally.watched(SlateGroup("p", version, "new"), f"b{user}", [10, plays + 1, 1, 8.0])
    found = tally.compare_arms("old", "new")
    assert (found.clicks["old"].value, found.clicks["old"].n) == (0.3, 400)
    assert found.clicks["new"].value == pytest.approx(0.4)
    assert found.orders["new"].value == 0.1
    assert found.difference.value == pytest.approx(0.1)
    assert found.ceiling == pytest.approx(0.7)


def test_a_comparison_without_slates_is_no_number() -> None:
    found = Tally().compare_arms("old", "new")
    assert found.clicks["old"].n == 0
    assert math.isnan(found.difference.value)
    assert math.isnan(found.ceiling)


def test_the_differences_interval_covers_the_truth_nineteen_times_of_twenty() -> None:
    rng, inside = np.random.default_rng(1), 0
    for trial in range(150):
        groups = []
        for mean in (0.25, 0.30):
            shown = rng.integers(5, 40, 150)
            clicks = rng.binomial(shown, rng.beta(20 * mean, 20 * (1 - mean), 150))
            groups.append(np.stack([clicks, shown], axis=1).astype(float))
        found = rate_difference(*groups, seed=trial)
        inside += found.low <= 0.05 <= found.high
    assert 0.90 <= inside / 150 <= 0.99


def test_latencies_and_fallbacks_are_counted_by_surface() -> None:
    tally = Tally()
    for took_ms in (1.0, 2.0, 3.0):
        tally.answered(_reply("feed", "ranker"), took_ms)
    tally.answered(_reply("queries"), 9.0)
    tally.failed("queries")
    took = tally.latencies()
    assert (took["feed"].count, took["feed"].p50_ms) == (3, 2.0)
    assert took["queries"].p99_ms == 9.0
    assert tally.fallbacks == {"feed: ranker": 3}
    assert tally.failures == {"queries": 1}
