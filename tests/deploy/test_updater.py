"""Laws of the updater: what makes an update due, one at a time, pauses after failures, clocks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.processes.update_child import BUSY, DONE, FAILED, WAITING
from deploy.processes.updater import LONGEST_UPDATE_S, Updater, update_command
from deploy.services.process import Child, wait_until
from deploy.settings import Settings, SettingsError, load
from deploy.stack import own_processes
from models.ranking.ple.inputs import SIGNATURE
from models.release.store import ReleaseStore
from models.training.schedule import LONGEST_RETRY_S, Schedule, due, retry_pause_s
from models.training.update_report import STALE_S, update_reports
from models.training.update_state import (
    Attempt,
    UpdateState,
    read_state,
    update_lease,
    updates_folder,
    write_state,
)
from streams.contract.clock import HOUR_MS, ManualClock

EVERY = Schedule(every_ms=6 * HOUR_MS)
NOW_MS = 1_700_000_000_000


def attempt(started_ms: int = NOW_MS, ending: str = "promoted", **more: Any) -> Attempt:
    values = {"since_ms": 0, "until_ms": started_ms, "impressions": 9, "incumbent": 1}
    ended = {"phase": "finished", "ending": ending, "reasons": ("as the test says",)}
    return Attempt(**({"number": 1, "started_ms": started_ms} | values | ended | more))


@dataclass
class FakeRun:
    """A child that ends when the test says so."""

    code: int | None = None
    stopped: bool = False

    def alive(self) -> bool:
        return self.code is None

    def exit_code(self) -> int | None:
        return self.code

    def cause(self, lines: int = 20) -> str:
        del lines
        return "ValueError: no space left"

    def stop(self, grace_s: float = 10.0) -> int:
        del grace_s
        self.stopped, self.code = True, -9
        return -9


@dataclass
class Harness:
    """An updater with clocks, feedback and children that the test sets."""

    store: ReleaseStore
    schedule: Schedule = EVERY
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW_MS))
    monotonic_s: float = 1_000.0
    matured_ms: list[int] = field(default_factory=list)
    runs: list[FakeRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.updater = self.new_updater()

    def new_updater(self) -> Updater:
        return Updater(
            {"ranker": self.schedule},
            self.store,
            self.clock,
            lambda since, until: sum(since < at <= until for at in self.matured_ms),
            self._start,
            lambda: self.monotonic_s,
        )

    def _start(self, model: str) -> FakeRun:
        assert model == "ranker"
        self.runs.append(FakeRun())
        return self.runs[-1]

    def feedback(self, count: int) -> None:
        self.matured_ms += [self.clock.at_ms] * count

    def tick(self, seconds: float = 10.0) -> dict[str, Any]:
        self.monotonic_s += seconds
        self.updater.tick()
        return update_reports(self.store)["ranker"]

    def end(self, code: int, **state: Any) -> dict[str, Any]:
        """The running child ends as a real one does: with its attempt in the state."""
        if state:
            last = attempt(self.clock.at_ms, **({"until_ms": self.clock.at_ms} | state))
            used = last.until_ms if last.ending == "promoted" else 0
            write_state(self.store, "ranker", UpdateState(used, 0, last))
        self.runs[-1].code = code
        return self.tick()


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """A store in which version 1 of the ranker is live since `NOW_MS`."""
    made = ReleaseStore(tmp_path / "releases")
    staging = made.staging("ranker")
    made.seal(
        "ranker", staging, runtime="models.echo:EchoRuntime", signature=SIGNATURE, created_ms=1
    )
    made.set_current(made.propose({"ranker": 1}, created_ms=1).release_id, at_ms=NOW_MS)
    return made


def test_an_update_is_due_when_its_interval_has_passed(store: ReleaseStore) -> None:
    harness = Harness(store)
    harness.feedback(3)
    harness.clock.advance(6 * HOUR_MS - 1)
    report = harness.tick()
    assert (report["phase"], report["next_due_ms"]) == ("waiting", NOW_MS + 6 * HOUR_MS)
    harness.clock.advance(1)
    assert harness.tick()["phase"] == "running"
    report = harness.end(DONE, ending="promoted")
    assert (report["phase"], report["last"]["ending"]) == ("waiting", "promoted")
    harness.clock.advance(6 * HOUR_MS)
    assert harness.tick()["phase"] == "waiting", "there is no new feedback"
    harness.feedback(1)
    assert harness.tick()["phase"] == "running"
    assert len(harness.runs) == 2


def test_an_update_is_due_when_enough_feedback_has_matured(store: ReleaseStore) -> None:
    harness = Harness(store, Schedule(after_feedback=50))
    harness.feedback(49)
    report = harness.tick()
    assert report["phase"] == "waiting"
    assert "49 of 50" in report["why"]
    harness.feedback(1)
    assert harness.tick()["phase"] == "running"


@pytest.mark.parametrize("ending", ["promoted", "refused", "waiting"])
def test_the_same_feedback_starts_no_second_update(store: ReleaseStore, ending: str) -> None:
    harness = Harness(store, Schedule(after_feedback=50))
    harness.feedback(60)
    harness.tick()
    assert (
        harness.end(WAITING if ending == "waiting" else DONE, ending=ending)["phase"] == "waiting"
    )
    harness.clock.advance(HOUR_MS)
    harness.feedback(49)
    assert harness.tick()["phase"] == "waiting"
    harness.feedback(1)
    assert harness.tick()["phase"] == "running"


def test_without_a_live_release_it_waits_and_says_so(tmp_path: Path) -> None:
    harness = Harness(ReleaseStore(tmp_path), Schedule(after_feedback=1))
    harness.feedback(9)
    report = harness.tick()
    assert (report["phase"], report["problem"]) == ("waiting", "")
    assert "no release with ranker is live" in report["why"]


def test_nothing_starts_while_another_process_updates(store: ReleaseStore) -> None:
    harness = Harness(store, Schedule(after_feedback=1))
    harness.feedback(1)
    with update_lease(store, "ranker"):
        report = harness.tick()
        assert report["phase"] == "due"
        assert f"an update runs already (of ranker, process {os.getpid()})" in report["why"]
        assert harness.runs == []
    assert harness.tick()["phase"] == "running"
    report = harness.end(BUSY)  # it lost the race for the lease: no failure
    assert report["failures"] == 0


def test_failures_are_retried_ever_later_and_named(store: ReleaseStore) -> None:
    harness = Harness(store, Schedule(after_feedback=1))
    harness.feedback(1)
    harness.tick()
    for failures in (1, 2, 3):
        report = harness.end(FAILED)
        assert report["phase"] == "retrying"
        assert f"failed {failures} times" in report["problem"]
        assert "no space left" in report["problem"]
        assert harness.tick(retry_pause_s(failures) - 1)["phase"] == "retrying"
        assert len(harness.runs) == failures
        assert harness.tick(2)["phase"] == "running"
    report = harness.end(DONE, ending="refused")
    assert (report["problem"], report["failures"]) == ("", 0)


def test_a_restarted_updater_keeps_the_pause_of_earlier_failures(store: ReleaseStore) -> None:
    write_state(store, "ranker", UpdateState(0, 4, attempt(ending="failed")))
    harness = Harness(store, Schedule(after_feedback=1))
    assert harness.tick()["phase"] == "retrying"
    assert harness.tick(retry_pause_s(4))["phase"] == "running"


def test_a_running_update_is_reported_with_its_reason(store: ReleaseStore) -> None:
    harness = Harness(store, Schedule(after_feedback=1))
    harness.feedback(1)
    why = harness.tick()["why"]
    assert "1 impressions have matured" in why
    write_state(store, "ranker", UpdateState(0, 1, attempt(phase="training", ending="")))
    report = harness.tick()
    assert (report["phase"], report["why"]) == ("running", why)


def test_what_a_kill_left_behind_is_finished_at_the_next_start(store: ReleaseStore) -> None:
    left = attempt(phase="training", ending="")
    write_state(store, "ranker", UpdateState(0, 1, left))
    harness = Harness(store)
    report = harness.tick()
    assert report["phase"] == "running"
    assert "interrupted" in report["why"]


def test_a_stopped_updater_ends_its_child(store: ReleaseStore) -> None:
    harness = Harness(store, Schedule(after_feedback=1))
    harness.feedback(1)
    harness.tick()
    harness.updater.stop()
    assert harness.runs[0].stopped
    assert update_reports(store) == {}


def test_a_child_that_takes_too_long_is_ended(store: ReleaseStore) -> None:
    harness = Harness(store, Schedule(after_feedback=1))
    harness.feedback(1)
    harness.tick()
    report = harness.tick(LONGEST_UPDATE_S + 1)
    assert harness.runs[0].stopped
    assert "longer than" in report["problem"]


def test_a_damaged_state_is_named_and_ends_no_process(store: ReleaseStore) -> None:
    updates_folder(store).mkdir()
    path = updates_folder(store) / "ranker.json"
    path.write_text("{")
    harness = Harness(store, Schedule(after_feedback=1))
    harness.feedback(1)
    assert "cannot be read" in harness.tick()["problem"]
    path.unlink()
    assert harness.tick()["phase"] == "running"


def test_a_clock_that_jumps_ahead_gives_one_update(store: ReleaseStore) -> None:
    harness = Harness(store)
    harness.feedback(1)
    harness.clock.advance(365 * 24 * HOUR_MS)
    assert harness.tick()["phase"] == "running"
    harness.end(DONE, ending="promoted")
    harness.clock.advance(1)
    harness.feedback(1)
    assert harness.tick()["phase"] == "waiting"
    harness.clock.advance(6 * HOUR_MS)
    assert harness.tick()["phase"] == "running"


def test_a_clock_that_jumps_back_does_not_end_updates(store: ReleaseStore) -> None:
    harness = Harness(store)
    harness.clock.advance(365 * 24 * HOUR_MS)
    harness.feedback(1)
    harness.tick()
    harness.end(DONE, ending="promoted", until_ms=NOW_MS)  # of feedback, not of the wrong clock
    harness.clock.at_ms = NOW_MS + HOUR_MS
    harness.feedback(1)
    assert harness.tick()["phase"] == "running"
    harness.end(DONE, ending="promoted")
    harness.clock.advance(1)
    harness.feedback(1)
    assert harness.tick()["phase"] == "waiting"


@given(
    every_ms=st.integers(1, 10**9),
    started_ms=st.integers(0, 2**42),
    now_ms=st.integers(0, 2**42),
)
def test_by_time_no_wait_is_longer_than_two_intervals(
    every_ms: int, started_ms: int, now_ms: int
) -> None:
    state = UpdateState(0, 0, attempt(started_ms))
    found = due(Schedule(every_ms), state, now_ms=now_ms, live_since_ms=0, matured=1)
    assert found.at_ms is not None
    assert found.at_ms - now_ms <= 2 * every_ms
    assert found.now == (found.at_ms <= now_ms)


def test_pauses_double_up_to_the_longest() -> None:
    pauses = [retry_pause_s(failures) for failures in range(200)]
    assert pauses[:4] == [0, 30, 60, 120]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_RETRY_S


def test_a_silent_updater_is_not_reported(store: ReleaseStore) -> None:
    harness = Harness(store)
    assert harness.tick()["phase"] == "waiting"
    path = updates_folder(store) / "scheduled.json"
    old_s = path.stat().st_mtime - STALE_S - 1
    os.utime(path, (old_s, old_s))
    assert update_reports(store) == {}


def test_a_schedule_is_checked_and_starts_the_process(tmp_path: Path) -> None:
    plain = load(home=tmp_path)
    assert "updater" not in own_processes(plain)
    scheduled = load(home=tmp_path, updates={"ranker": {"every": "1.5h", "after_feedback": 10}})
    assert own_processes(scheduled)[-1] == "updater"
    assert scheduled.updates["ranker"].schedule() == Schedule(5_400_000, 10)
    assert scheduled.updates["ranker"].in_words() == "every 1.5h or after 10 matured impressions"
    for wrong, says in (
        ({"oracle": {"every": "1h"}}, "these have: queries, ranker, reactivation"),
        ({"ranker": {}}, "says not when"),
        ({"ranker": {"every": "0s"}}, "a number above 0 with a unit"),
        ({"ranker": {"every": "6"}}, "a number above 0 with a unit"),
        ({"ranker": {"after_feedback": 0}}, "greater than or equal to 1"),
    ):
        with pytest.raises(SettingsError, match=says):
            load(home=tmp_path, updates=wrong)


def test_the_demo_schedules_nothing(tmp_path: Path) -> None:
    from deploy.demo.run import demo_settings
    from deploy.simulation.config import DEFAULT_PATH, WorldConfig

    scheduled = load(home=tmp_path, updates={"ranker": {"every": "1h"}})
    assert demo_settings(scheduled, WorldConfig.load(DEFAULT_PATH), NOW_MS).updates == {}


def test_the_real_child_names_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started from the settings of this environment, and has the lowest priority."""
    monkeypatch.setenv("TIDEMILL_HOME", str(tmp_path))
    monkeypatch.setenv("TIDEMILL_TRITON", "in_process")
    settings: Settings = load()
    child = Child("update", update_command(settings, "ranker"))
    assert wait_until(lambda: not child.alive(), 600)
    assert child.exit_code() == FAILED
    assert "no release with ranker is live" in child.cause(1)
    state = read_state(ReleaseStore(settings.releases_dir), "ranker")
    assert state == UpdateState()
