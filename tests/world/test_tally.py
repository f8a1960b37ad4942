"""The tally: rates are ratios of sums, intervals cover, phases are counted separately."""

from __future__ import annotations

import math

import numpy as np

from deploy.simulation.tally import Tally, rate


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
    tally.watched("before", "r1", "u1", [10, 2, 1])
    tally.watched("before", "r1", "u1", [10, 4, 0])
    tally.watched("after", "r1", "u1", [10, 9, 0])
    tally.watched("after", "r2", "u1", [10, 1, 0])
    assert tally.click_rate("before", "r1").value == 0.3
    assert tally.order_rate("before", "r1").value == 0.05
    assert tally.click_rate("after", "r2").value == 0.1
    assert tally.click_rate("before", "r2").n == 0


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
