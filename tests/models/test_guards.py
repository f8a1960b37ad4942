"""Laws of the gate's guards: a proven loss in a slice refuses, drift is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from models.alignment.gate import GateThresholds, evaluate_challenger
from models.alignment.guards import Drift, Guards, drift_in_words, evaluate_guards
from models.alignment.slices import feed_guards, feed_slices, popularity
from models.ranking.ple.data import RankerExamples, impression_examples
from models.recipe import TrainingLog
from streams.contract.clock import DAY_MS
from tests.models.conftest import SERVED_MS


@pytest.fixture(scope="module")
def slates(small_log: TrainingLog) -> RankerExamples:
    return impression_examples(small_log, count=10_000)


def scores_of(slates: RankerExamples) -> tuple[np.ndarray, np.ndarray]:
    """The incumbent's scores, and a challenger's that are better for every user."""
    rng = np.random.default_rng(0)
    noise = rng.random(slates.item.shape)
    return 0.5 + noise, 0.5 + noise + 0.5 * slates.acted


def test_a_challenger_that_fails_one_group_of_users_is_refused(slates: RankerExamples) -> None:
    incumbent, challenger = scores_of(slates)
    few = np.array([user in {f"u{n}" for n in range(12)} for user in slates.users])
    challenger[few] = incumbent[few] + 0.5 * ~slates.acted[few]
    guards = Guards({"all": ~few | few, "a few": few}, {}, np.zeros(slates.item.shape, np.int64))
    rules = GateThresholds()
    alone = evaluate_challenger(slates, incumbent, challenger, rules, seed=0)
    guarded = evaluate_challenger(slates, incumbent, challenger, rules, seed=0, guards=guards)
    assert alone.promoted, alone.reasons
    assert not guarded.promoted
    assert [each.lost for each in guarded.slices] == [False, True]
    assert any(reason.startswith("a few: GAUC falls") for reason in guarded.reasons)


def test_a_slice_of_one_user_proves_nothing(slates: RankerExamples) -> None:
    incumbent, _ = scores_of(slates)
    one = slates.users == "u0"
    guards = Guards({"one": one}, {}, np.zeros(slates.item.shape, np.int64))
    (found,), _ = evaluate_guards(slates, incumbent, -incumbent, guards, seed=0)
    assert not found.lost


def test_drift_compares_what_stands_first(slates: RankerExamples) -> None:
    places = np.broadcast_to(np.arange(slates.item.shape[1], dtype=float), slates.item.shape)
    guards = Guards({}, {"place": places}, np.zeros(slates.item.shape, np.int64))
    _, (place, kinds) = evaluate_guards(slates, -places, places, guards, seed=0)
    assert (place.incumbent, place.challenger) == (1.0, 4.0)
    assert (kinds.incumbent, kinds.challenger) == pytest.approx((1 / 3, 1 / 3))
    assert "+300%, beyond 10%" in place.in_words()
    assert drift_in_words({"drift": [vars(Drift("x", 1.0, 1.05))]})[0].endswith("(+5%, within 10%)")
    assert drift_in_words(None) == []


def test_the_feeds_slices_follow_the_log(small_log: TrainingLog, slates: RankerExamples) -> None:
    """Every user has 14 interactions in the 20 days before the first slate."""
    found = feed_slices(small_log, slates)
    assert not found["cold users"].any()
    silent = small_log.events.filter(
        (pl.col("user_id") != "u1") | (pl.col("event_time_ms") < SERVED_MS - 15 * DAY_MS)
    )
    quiet = feed_slices(replace(small_log, events=silent), slates)
    mine = slates.users == "u1"
    assert (quiet["cold users"] | quiet["dormant users"])[mine].all()
    assert not (quiet["cold users"] & quiet["dormant users"]).any()
    plays = popularity(small_log)
    tail = plays[slates.item][found["tail items"]]
    assert tail.max() <= np.median(plays)
    np.testing.assert_array_equal(found["provenance human"], slates.real)
    assert feed_guards(small_log, slates).kind.shape == slates.item.shape
