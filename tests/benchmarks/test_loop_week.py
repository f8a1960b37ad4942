"""The simulated week on a tiny world: drift, consumption, the learner, verdicts and kept cells."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loop import add_rows, check
from benchmarks.loop.arms import (
    ARMS,
    FACTORS_NIGHTLY,
    FORM,
    ORACLE,
    OURS,
    POPULARITY,
    STACKED,
    ArmRun,
    direct_arm,
    run_arm,
)
from benchmarks.loop.cells import DRIFTING, NULL, Cell, _path, _read, _write
from benchmarks.loop.plain import implicit_factors, item_knn
from benchmarks.loop.world import SLOTS, DriftingWorld, LoopSize, make
from benchmarks.poison import CAPPED, HOSTILE_SHARE, TWIN, Attack, kept_reward, times_exposed
from benchmarks.report import Report
from deploy.simulation.config import WorldConfig
from deploy.simulation.movielens import DataUnavailable, load

TINY = LoopSize(users=40, ratings=120, steps=4)


@pytest.fixture(scope="module")
def world() -> DriftingWorld:
    try:
        return make(WorldConfig.load(), load(), TINY, 100)
    except DataUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def runs(world: DriftingWorld) -> dict[str, ArmRun]:
    return {arm: run_arm(world, direct_arm(world, arm)) for arm in ARMS if arm not in STACKED}


def test_tastes_turn_by_the_stated_angle_and_keep_their_spread(world: DriftingWorld) -> None:
    first, last = (world.truth(step).taste.users for step in (0, TINY.steps - 1))
    assert np.corrcoef(first.ravel(), last.ravel())[0, 1] == pytest.approx(
        math.cos(TINY.turn), abs=0.2
    )
    assert last.std() == pytest.approx(first.std(), rel=0.2)
    still = replace(world, size=replace(TINY, turn=0.0))
    assert still.reward(3) == pytest.approx(world.reward(0))


def test_no_arm_is_above_the_oracle_and_the_learner_is_above_popularity(
    runs: dict[str, ArmRun],
) -> None:
    mean = {arm: run.reward.mean() for arm, run in runs.items()}
    assert max(mean, key=lambda arm: mean[arm]) == ORACLE
    assert mean[FORM] > mean[POPULARITY]


def test_what_was_played_is_not_shown_again(world: DriftingWorld) -> None:
    arm = direct_arm(world, FACTORS_NIGHTLY)
    played = world.played.copy()
    for step in range(TINY.steps):
        truth = world.truth(step)
        for user, slate in arm.serve(step, *world.visits(step)).items():
            assert len(set(slate.tolist())) == SLOTS
            assert not played[user, slate].any()
            acts = world.watch(truth, user, slate.tolist(), step)
            played[user, [slate[slot] for slot, kind, *_ in acts if kind == "play"]] = True
        arm.learn(step)


def test_plain_baselines_rank_what_their_neighbours_play() -> None:
    camps = np.zeros((20, 10), bool)
    camps[:10, :5] = camps[10:, 5:] = True
    camps[0, 4] = camps[19, 5] = False
    for fit in (item_knn, implicit_factors):
        scores = fit(camps, 0)
        assert scores[0, 4] > scores[0, 5:].max()
        assert scores[19, 5] > scores[19, :5].max()


def test_a_cell_is_kept_and_read_back(tmp_path: Path) -> None:
    run = ArmRun(np.arange(3.0), np.ones(2), {"serving": 1.0, "learning": 2.0}, ["promoted: x"])
    path = _path(tmp_path, Cell(DRIFTING, OURS, 1))
    _write(path, run)
    found = _read(path)
    assert found.reward.tolist() == run.reward.tolist()
    assert (found.cpu_s, found.verdicts) == (run.cpu_s, run.verdicts)
    assert _path(tmp_path, Cell(NULL, OURS, 1)) != path


@pytest.mark.parametrize(("gain", "met"), [(6.0, True), (-1.0, False)])
def test_verdicts_follow_the_rewards(gain: float, met: bool) -> None:
    """Ours `gain` above frozen; the learner 10 above it; all others below."""
    rng = np.random.default_rng(0)
    base = 100 + rng.normal(size=200)
    over = {OURS: gain, FORM: 10.0, ORACLE: 20.0, POPULARITY: -5.0}
    runs = {
        Cell(world, arm, 0): ArmRun(
            base + over.get(arm, 0.0), np.full(28, 1.0), {"serving": 1.0, "learning": 1.0}
        )
        for world in (DRIFTING, NULL)
        for arm in ARMS
    }
    report = Report("loop", {})
    add_rows(report, runs, DRIFTING, ARMS)
    check(report, runs)
    verdict = {each.name: each.ok for each in report.checks}
    assert verdict["ours over frozen, lower bound %"] is met
    assert verdict["ours: share of the form-knowing learner's gain"] is met


def test_hostile_users_send_what_is_stated_and_exposure_is_compared(world: DriftingWorld) -> None:
    messages = Attack(world, 3).messages(0)
    users = {message["user_id"] for message in messages}
    assert len(users) == round(HOSTILE_SHARE * len(world.user_ids))
    assert len({message["event_id"] for message in messages}) == len(messages) == 25 * len(users)
    assert {message["video_id"] for message in messages} == {world.items[3].video_id}
    twin = ArmRun(np.full(5, 10.0), np.ones(1), {}, exposure=0.01)
    runs = {TWIN: [twin], CAPPED: [replace(twin, reward=np.full(5, 9.9), exposure=0.03)]}
    assert times_exposed(runs, CAPPED) == pytest.approx(3)
    assert kept_reward(runs, CAPPED) == pytest.approx((99.0, 99.0, 99.0))
