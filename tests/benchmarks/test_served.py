"""The served benchmark on a tiny world: its judge, its stages and its verdicts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.report import Report
from benchmarks.served import NULL, add_policies, check, note_stages, outcome_of, worlds_of
from benchmarks.served.measurement import BEST, ORACLE, ORACLE_CLICKS, POPULARITY, RANDOM, SERVED
from benchmarks.served.outcome import Outcome, record
from benchmarks.served.stages import top
from benchmarks.served.world import SLOTS, ServedWorld, Size, make
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import DataUnavailable, MovieLens, load
from models.ranking.ple.config import RankerConfig

USERS, NEWCOMERS = 12, 4
TINY = Size(USERS, NEWCOMERS, 60)


@pytest.fixture(scope="module")
def data() -> MovieLens:
    """The first 150 films and 90 users that rated them most."""
    try:
        whole = load()
    except DataUnavailable as reason:
        pytest.skip(str(reason))
    films = whole.films[:150]
    ratings = whole.ratings.filter(pl.col("video_id").is_in([film.video_id for film in films]))
    most = ratings.group_by("user_id").len().sort("len", "user_id").tail(90)["user_id"]
    return MovieLens(films, ratings.filter(pl.col("user_id").is_in(most.implode())))


@pytest.fixture(scope="module")
def world(data: MovieLens) -> ServedWorld:
    return make(WorldConfig.load(), data, 0, TINY)


@pytest.fixture(scope="module")
def outcome(data: MovieLens) -> Outcome:
    return outcome_of(WorldConfig.load(), data, 1, TINY, RankerConfig(interactions=200))


def test_newcomers_have_no_event(world: ServedWorld) -> None:
    assert len(world.user_ids) == USERS + NEWCOMERS
    known = set(world.log.events["user_id"])
    assert known.isdisjoint(world.user_ids[USERS:])
    assert known.issuperset(world.user_ids[:USERS])
    assert set(world.ratings["user_id"]) <= known


def test_the_log_holds_no_truth_and_no_later_event(world: ServedWorld) -> None:
    assert not [name for name in world.log.events.columns if name.startswith("truth")]
    assert int(world.log.events["event_time_ms"].max()) < world.log.until_ms  # type: ignore[arg-type]
    assert (world.at_ms >= world.log.until_ms).all()
    assert world.log.feedback["request_id"].n_unique() == TINY.slates


def test_expected_values_weigh_slots_by_attention(world: ServedWorld) -> None:
    one = np.ones_like(world.utility)
    slates = np.tile(np.arange(SLOTS), (len(world.users), 1))
    attention = world.truth.attention(np.arange(SLOTS))
    assert world.expected(slates, one) == pytest.approx(attention.mean())
    slates[:, 3:] = -1
    assert world.expected(slates, one) == pytest.approx(attention[:3].sum() / SLOTS)


def test_top_takes_only_what_is_allowed_and_pads() -> None:
    allowed = np.zeros((1, 30), bool)
    allowed[0, [4, 9, 20]] = True
    assert top(np.arange(30.0)[None], allowed).tolist() == [[20, 9, 4] + [-1] * 7]


def test_no_policy_is_above_the_oracle(outcome: Outcome) -> None:
    for policy in outcome.utility:
        assert (outcome.utility[policy][0] <= outcome.utility[ORACLE][0] + 1e-9).all()
        assert (outcome.clicks[policy][0] <= outcome.clicks[ORACLE_CLICKS][0] + 1e-9).all()
    assert outcome.mean("utility", ORACLE) > outcome.mean("utility", RANDOM)


def test_each_stage_allows_no_more_than_the_one_before(outcome: Outcome) -> None:
    order = ["oracle: all items", "oracle: candidates", "oracle: after pre-rank"]
    order += ["fused: true weights"]
    found = [outcome.stages[name][0] for name in order]
    for before, after in pairwise(found):
        assert (after <= before + 1e-9).all()
    assert np.array_equal(outcome.stages["served slate"][0], outcome.utility[SERVED][0])
    assert outcome.mean("figures", "stages that failed") == 0


def test_the_share_of_the_way_is_0_at_its_start_and_1_at_its_end(outcome: Outcome) -> None:
    assert outcome.share_of_way(POPULARITY, POPULARITY, ORACLE)[0] == pytest.approx(0)
    assert outcome.share_of_way(ORACLE, POPULARITY, ORACLE) == pytest.approx((1, 1, 1))


def test_the_report_has_a_row_a_policy_and_the_worlds_verdicts(outcome: Outcome) -> None:
    report = Report("served", {})
    for world in ("headline", "moods", NULL):
        add_policies(report, world, outcome)
        note_stages(report, world, outcome)
        check(report, world, outcome)
    assert len(report.rows) == 3 * len(outcome.utility)
    gated = [verdict.name for verdict in report.checks if verdict.ok is not None]
    assert sum(name.startswith("headline") for name in gated) == 3
    assert sum(name.startswith("moods") for name in gated) == 2
    assert sum(name.startswith(NULL) for name in gated) == 1


def test_a_null_world_that_loses_two_percent_does_not_meet_its_bar() -> None:
    outcome = Outcome()
    for metric in (outcome.utility, outcome.clicks):
        for name, value in (("popularity", 1.0), (SERVED, 0.98), (BEST, 1.0)):
            record(metric, name, np.full(20, value))
    for name in ("item-kNN over plays", "factorisation + log plays", "LightGBM lambdarank"):
        record(outcome.utility, name, np.full(20, 0.5))
    report = Report("served", {})
    check(report, NULL, outcome)
    assert [verdict.ok for verdict in report.checks] == [False]


def test_a_stated_world_is_measured_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "default"\n[replay]\nshare = 0.25\n')
    assert list(worlds_of(path)) == ["mine"]
    assert list(worlds_of(None)) == ["headline", "moods", "null"]
