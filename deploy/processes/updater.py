"""The process `updater`: starts a preference update when the settings say that one is due.

Knows schedules, one child process at a time and the pauses after failures. Does not know what an
update does (`deploy.processes.update_child`) nor the rule by which it is due
(`models.training.schedule`).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from deploy import wiring
from deploy.processes.lifecycle import Process
from deploy.processes.update_child import BUSY, DONE, THREADS, WAITING
from deploy.services.cache import ROOT
from deploy.services.process import Child, Command
from deploy.settings import Settings
from models.release.bundle import ReleaseError
from models.release.store import ReleaseStore
from models.training.schedule import Due, Schedule, due, retry_pause_s
from models.training.update_report import (
    HEARTBEAT_S,
    ScheduledUpdate,
    forget_scheduled,
    write_scheduled,
)
from models.training.update_state import lease_holder, read_state
from streams.contract.clock import Clock
from streams.feedback.store import count_matured

TICK_S = 1.0
COUNT_EVERY_S = 5.0
COUNT_SHARE = 0.02  # of a processor that counting feedback may take at most
LONGEST_UPDATE_S = 6 * 3_600.0  # of real time; then the child is ended and counts as failed
GRACE_S = 5.0

_log = logging.getLogger("tidemill")


class Run(Protocol):
    """A child process that updates one model (`deploy.services.process.Child`)."""

    def alive(self) -> bool: ...

    def exit_code(self) -> int | None: ...

    def cause(self, lines: int = 20) -> str: ...

    def stop(self, grace_s: float = 10.0) -> int: ...


@dataclass
class _Tally:
    """What the updater remembers of one model between ticks; times are monotonic seconds."""

    failures: int
    retry_at_s: float
    problem: str = ""  # of the last update
    error: str = ""  # of the last look at whether one is due
    matured: int = 0
    counted_after_ms: int = -1  # the count's lower end: another one makes it stale
    count_again_at_s: float = 0.0


@dataclass(frozen=True)
class _Running:
    model: str
    run: Run
    since_s: float
    why: str


@dataclass
class Updater:
    """Decides at each `tick` whether to start an update; at most one runs at a time.

    count: matured impressions in (since_ms, until_ms]. start: begins an update of a model.
    """

    schedules: Mapping[str, Schedule]
    store: ReleaseStore
    clock: Clock
    count: Callable[[int, int], int]
    start: Callable[[str], Run]
    monotonic_s: Callable[[], float] = time.monotonic
    _tallies: dict[str, _Tally] = field(default_factory=dict)
    _running: _Running | None = None
    _written: tuple[dict[str, ScheduledUpdate], float] | None = None

    def __post_init__(self) -> None:
        for model in self.schedules:
            failures = self._failures_before(model)
            at_s = self.monotonic_s() + retry_pause_s(failures)
            self._tallies[model] = _Tally(failures, at_s)

    def _failures_before(self, model: str) -> int:
        try:
            state = read_state(self.store, model)
        except ReleaseError:
            return 0  # each tick names it
        # What a kill has just left behind is finished at once.
        return state.failures - (state.unfinished is not None)

    def tick(self) -> None:
        """Follows the running update, or starts one that is due; then writes what readers see."""
        if self._running is not None:
            self._follow(self._running)
        found = {model: self._consider(model) for model in self.schedules}
        self._publish(found)

    def stop(self) -> None:
        """Ends the running update, which the next start undoes or finishes."""
        if self._running is not None:
            self._running.run.stop(GRACE_S)
            self._running = None
        forget_scheduled(self.store)

    def _follow(self, running: _Running) -> None:
        model, run = running.model, running.run
        if run.alive():
            if self.monotonic_s() - running.since_s > LONGEST_UPDATE_S:
                run.stop(GRACE_S)
                self._failed(model, f"it took longer than {LONGEST_UPDATE_S / 3600:g} h")
                self._running = None
            return
        self._running = None
        code, tally = run.exit_code(), self._tallies[model]
        if code in (DONE, WAITING):
            tally.failures, tally.problem = 0, ""
            _log.info("update of %s: %s", model, self._ending(model))
        elif code != BUSY:
            cause = next(iter(run.cause(1).splitlines()), "") or f"it ended with code {code}"
            self._failed(model, cause)

    def _failed(self, model: str, cause: str) -> None:
        tally = self._tallies[model]
        tally.failures += 1
        pause_s = retry_pause_s(tally.failures)
        tally.retry_at_s = self.monotonic_s() + pause_s
        tally.problem = (
            f"the update failed {tally.failures} times in a row, the next try is in {pause_s:g} s: "
            f"{cause}"
        )
        _log.warning("update of %s: %s", model, tally.problem)

    def _consider(self, model: str) -> ScheduledUpdate:
        """Starts the model's update if it is due and nothing else runs.

        No error ends the process: it is named, and the next tick tries again.
        """
        tally = self._tallies[model]
        try:
            found = self._due(model, tally)
            phase, why = self._phase(model, tally, found)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if tally.error != problem:
                _log.exception("whether an update of %s is due cannot be told", model)
            tally.error = problem
            return ScheduledUpdate("waiting", problem, None, 0, tally.failures, problem)
        tally.error = ""
        return ScheduledUpdate(
            phase, why, found.at_ms, tally.matured, tally.failures, tally.problem
        )

    def _phase(self, model: str, tally: _Tally, found: Due) -> tuple[str, str]:
        """The phase and its reason, after the update was started if it could be."""
        if self._running is not None and self._running.model == model:
            return "running", self._running.why
        if not found.now:
            return "waiting", found.why
        if holder := lease_holder(self.store):
            return "due", f"an update runs already ({holder})"
        if self.monotonic_s() < tally.retry_at_s:
            return "retrying", found.why
        if self._running is not None:
            return "due", f"an update of {self._running.model} runs already"
        _log.info("updating %s: %s", model, found.why)
        self._running = _Running(model, self.start(model), self.monotonic_s(), found.why)
        return "running", found.why

    def _due(self, model: str, tally: _Tally) -> Due:
        current = self.store.current()
        if current is None or model not in current.models:
            return Due(False, f"no release with {model} is live")
        state, now_ms = read_state(self.store, model), self.clock.now_ms()
        began_s = self.monotonic_s()
        if tally.counted_after_ms != state.seen_until_ms or began_s >= tally.count_again_at_s:
            tally.matured = self.count(state.seen_until_ms, now_ms)
            took_s = self.monotonic_s() - began_s
            tally.count_again_at_s = began_s + max(COUNT_EVERY_S, took_s / COUNT_SHARE)
            tally.counted_after_ms = state.seen_until_ms
        return due(
            self.schedules[model],
            state,
            now_ms=now_ms,
            live_since_ms=self.store.first_live_ms(model) if state.last is None else 0,
            matured=tally.matured,
        )

    def _ending(self, model: str) -> str:
        last = read_state(self.store, model).last
        return f"{last.ending}: {'; '.join(last.reasons)}" if last is not None else "nothing to do"

    def _publish(self, found: dict[str, ScheduledUpdate]) -> None:
        now_s = self.monotonic_s()
        if (
            self._written is None
            or self._written[0] != found
            or (now_s - self._written[1] >= HEARTBEAT_S)
        ):
            write_scheduled(self.store, found)
            self._written = found, now_s


def run(process: Process) -> int:
    """Starts updates until stopped."""
    settings = process.settings
    updater = Updater(
        {model: each.schedule() for model, each in settings.updates.items()},
        ReleaseStore(settings.releases_dir),
        wiring.clock(settings.clock),
        lambda since_ms, until_ms: count_matured(settings.feedback_dir, since_ms, until_ms),
        lambda model: Child("update", update_command(settings, model)),
    )
    process.ready()
    try:
        while not process.stop.wait(TICK_S):
            updater.tick()
    finally:
        updater.stop()
    return 0


def update_command(settings: Settings, model: str) -> Command:
    """How the child is started. It reads the settings from where this process has them."""
    argv = [sys.executable, "-m", "deploy.processes.update_child", model]
    if (settings.home / "stack.json").exists():
        argv += ["--home", str(settings.home)]
    log = settings.home / "logs" / "update.log"
    return Command(argv, log, {"PYTHONUNBUFFERED": "1", **THREADS}, ROOT)
