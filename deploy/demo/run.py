"""`tidemill demo`: the whole loop in one run, reported as it happens.

Knows the order of events: starter bundle, start, page, replay, training beside the crowd, arms,
preference update, table. Does not know how a service starts (`deploy.stack`), how a model is trained
(`deploy.demo.learning`) nor how the crowd decides (`deploy.simulation`).

Its stack runs on an accelerated clock, in a home of its own that every run empties first.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy import wiring
from deploy.console import ProgressDisplay, ProgressTask, out, styled
from deploy.demo import arms
from deploy.demo import report as demo_report
from deploy.demo.flow import await_page, event_flow, events_handled
from deploy.demo.learning import ALIGNED, LearningStatus, run_learning
from deploy.demo.starter import STARTERS, StarterFailed, train_once
from deploy.settings import ClockSettings, FeedbackSettings, Settings
from deploy.simulation.config import WorldConfig
from deploy.simulation.crowd import Crowd, run_until
from deploy.simulation.history import History, history
from deploy.simulation.movielens import ACKNOWLEDGEMENT, load
from deploy.simulation.replay import replay
from deploy.simulation.tally import Rate, SlateGroup, Tally
from deploy.simulation.truth import Truth, plant
from deploy.stack import Stack
from deploy.state import DEMO, EXPERIMENT_FILE
from deploy.supervisor import Report
from streams.contract.impression import RANKER_ARM

UNRANKED, BEFORE, AFTER = "before the first ranker", "before the update", "after the update"
TRAINED = ("reactivation", "queries")  # beside the crowd, unless they have a starter bundle
_LOG_TIMEOUT_S = 60.0  # for the replayed events to reach the log
_LOG_SHARE = 0.999  # of them that is enough: a worker may hold the rest


@dataclass
class Demo:
    """One run. `duration_s` counts from the moment the page is up; None: until Ctrl-C."""

    settings: Settings
    world: WorldConfig
    duration_s: float | None = None
    seed: int = 0
    tally: Tally = field(default_factory=lambda: Tally(phase=UNRANKED))
    first_release: LearningStatus | None = None
    update: LearningStatus | None = None  # the outcome of the preference update
    live_s: dict[str, float] = field(default_factory=dict)  # model -> since the page was up
    versions: Mapping[str, int] = field(default_factory=dict)  # of the live release
    verdict_s: float | None = None  # of the update, likewise
    _page_s: float = 0.0
    _ends_at: float = float("inf")
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Starts the stack, runs until the time is up, prints the table, stops the stack."""
        data = load()
        _print_step("planting the crowd's tastes")
        truth = plant(data, self.world, self.seed)
        starters = self._starters(history(self.seed, world=self.world, data=data))
        # The clock begins here: the last replayed rating is a fixed time before it.
        settings = demo_settings(self.settings, self.world, time.time_ns() // 1_000_000)
        shutil.rmtree(settings.home, ignore_errors=True)
        arms.start(wiring.experiments(settings), settings, self.world.demo.popularity_share)
        stack = Stack(settings, report=_print_report, step=_print_step)
        threads: list[threading.Thread] = []
        try:
            end_ms = settings.clock.origin_ms - self.world.replay.gap_ms
            past = history(self.seed, end_ms=end_ms, world=self.world, data=data)
            stack.start()
            self._page_is_up(stack)
            truth.write(stack.settings.home)
            with ProgressDisplay() as display:
                threads += [self._adopt(stack, display, *each) for each in starters.items()]
                self._replay(stack, display, past)
                threads += self._start_crowd(stack, truth, past)
                self._train_and_update(stack, display, starters)
            self._wait(float("inf"))
        except (KeyboardInterrupt, _TimeIsUp):
            out.print("\ncounting and stopping …", style="dim")
        finally:
            self._over.set()
            for thread in threads:
                thread.join(10.0)
            self._finish(stack)

    def _finish(self, stack: Stack) -> None:
        try:
            if stack.settings.broker.bootstrap_servers:
                out.print(demo_report.table(self._result(stack.settings)))
        finally:
            stack.stop()

    def _page_is_up(self, stack: Stack) -> None:
        """The duration counts from here."""
        await_page(stack.page)
        self._page_s = time.monotonic()
        self._ends_at = self._page_s + (self.duration_s or float("inf"))
        out.print(styled("\nThe page: ", (stack.page, "bold")))
        out.print(
            f"{ACKNOWLEDGEMENT}; labelled replayed. The crowd is labelled simulated. "
            f"One second here is {self.world.demo.clock_rate:g} s on the stack's clock.\n",
            style="dim",
        )

    def _left_s(self) -> float:
        return self._ends_at - time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Sleeps; raises `_TimeIsUp` when the duration has passed."""
        until = min(time.monotonic() + seconds, self._ends_at)
        while time.monotonic() < until:
            time.sleep(min(0.2, max(0.0, until - time.monotonic())))
        if self._left_s() <= 0:
            raise _TimeIsUp

    def _starters(self, past: History) -> dict[str, Path]:
        """The folders of the starter bundles; a model whose training fails has none."""
        found: dict[str, Path] = {}
        for name in STARTERS:
            with ProgressDisplay() as display:
                task = display.add(f"training {name} once, on the replayed histories")

                def show(status: LearningStatus, task: ProgressTask = task) -> None:
                    task.update(status.share, status.step)

                try:
                    found[name] = train_once(name, past, show)
                    task.update(1.0, f"kept in {found[name]}")
                except StarterFailed as failure:
                    out.print(f"{failure}; it is trained beside the crowd instead", style="yellow")
        return found

    def _adopt(
        self, stack: Stack, display: ProgressDisplay, name: str, folder: Path
    ) -> threading.Thread:
        """Makes a starter bundle live while the histories are replayed."""
        arguments = (stack, display, "adopt", [name], str(folder))
        thread = threading.Thread(target=self._learn, args=arguments, name="adopt", daemon=True)
        thread.start()
        return thread

    def _replay(self, stack: Stack, display: ProgressDisplay, past: History) -> None:
        sent = display.add("replaying histories", len(past.frame))
        logged = display.add("events in the log", len(past.frame))
        replay(
            wiring.bus(stack.settings),
            past,
            stack.settings.home,
            progress=sent.update,
            log_dir=stack.settings.log_dir,
        )
        deadline = time.monotonic() + _LOG_TIMEOUT_S
        while time.monotonic() < deadline:
            rows = events_handled(stack.settings, "log-writer") or 0
            logged.update(rows)
            if rows >= _LOG_SHARE * len(past.frame):
                return
            self._wait(0.5)
        out.print("the log lags behind; training starts on the events that it has", style="yellow")

    def _start_crowd(self, stack: Stack, truth: Truth, past: History) -> list[threading.Thread]:
        """Runs the crowd and the arms' figures in threads of their own."""
        crowd = Crowd(
            truth,
            past,
            stack.page,
            wiring.clock(stack.settings.clock),
            self.tally,
            seed=self.seed,
            clock_rate=stack.settings.clock.rate,
            api_key=next(iter(stack.settings.security.api_keys), None),
        )
        shown = (self.tally, stack.settings.home / EXPERIMENT_FILE, self._over)
        threads = [
            threading.Thread(target=run_until, args=(crowd, self._over), name="crowd"),
            threading.Thread(target=arms.publish, args=shown, name="arms"),
        ]
        for thread in threads:
            thread.start()
        return threads

    def _train_and_update(
        self, stack: Stack, display: ProgressDisplay, starters: Mapping[str, Path]
    ) -> None:
        """A first release, feedback on it, one update; the other models train meanwhile."""
        if self._learn(stack, display, "train", [ALIGNED]) is None:
            out.print("training gave no release: see logs/learning.log", style="yellow")
        rest = [name for name in TRAINED if name not in starters]
        others = threading.Thread(
            target=self._learn, args=(stack, display, "train", rest), name="learning", daemon=True
        )
        others.start()
        if self.first_release is not None:
            self._wait(self._feedback_s())
            self.update = self._learn(stack, display, "update", [ALIGNED])
            if self.update is not None and self.update.outcome == "promoted":
                self.versions = self.update.versions
            self.tally.phase = AFTER
            self.verdict_s = time.monotonic() - self._page_s
            out.print(styled("the gate: ", (_gate_text(self.update), "bold")))
        while others.is_alive():
            self._wait(0.5)

    def _feedback_s(self) -> float:
        """Long enough for feedback to mature, short enough to measure the update's effect."""
        rules = self.world.demo
        matured_s = rules.window_ms / rules.clock_rate / 1000
        wanted = rules.gather_s + matured_s
        return max(matured_s, min(wanted, self._left_s() - 2 * rules.after_s))

    def _learn(
        self,
        stack: Stack,
        display: ProgressDisplay,
        command: str,
        names: Sequence[str],
        *more: str,
    ) -> LearningStatus | None:
        """Runs a learning process; its last status, or None if it failed or was stopped."""
        last: LearningStatus | None = None
        tasks = {name: display.add(f"{command} {name}") for name in names}

        def report(status: LearningStatus) -> None:
            nonlocal last
            last = status
            if command != "update" and status.outcome == "promoted":
                self._went_live(status)
            tasks[status.model].update(status.share, status.step[:60])

        log = stack.settings.home / "logs" / "learning.log"
        left_s = max(0.0, self._left_s())
        arguments = [command, *names, *more]
        exit_code = run_learning(stack.settings.home, arguments, report, log, left_s)
        return last if exit_code == 0 else None

    def _went_live(self, status: LearningStatus) -> None:
        self.live_s[status.model] = time.monotonic() - self._page_s
        self.versions = status.versions
        if ALIGNED in status.versions and self.first_release is None:
            self.first_release, self.tally.phase = status, BEFORE

    def _result(self, settings: Settings) -> demo_report.Result:
        tally, update = self.tally, self.update
        before = self.first_release.versions if self.first_release else {}
        return demo_report.Result(
            flow=event_flow(settings),
            latencies=tally.latencies(),
            failures=dict(tally.failures),
            fallbacks=dict(tally.fallbacks),
            returns=(tally.returns[True], sum(tally.returns.values())),
            live_s=dict(self.live_s),
            verdict_s=self.verdict_s,
            models=dict(self.versions),
            gate=_gate_text(update),
            reasons=update.reasons[:4] if update else [],
            arms=arms.compare(tally),
            phases=self._phases(before, self.versions),
        )

    def _phases(
        self, before: Mapping[str, int], after: Mapping[str, int]
    ) -> dict[str, tuple[Rate, Rate]]:
        """Clicks and orders of the ranker's arm before and after a promoted update."""
        if before.get(ALIGNED) == after.get(ALIGNED):
            return {}
        groups = {
            phase: SlateGroup(phase, str(models.get(ALIGNED)), RANKER_ARM)
            for phase, models in ((BEFORE, before), (AFTER, after))
        }
        return {
            phase: (self.tally.click_rate(group), self.tally.order_rate(group))
            for phase, group in groups.items()
        }


class _TimeIsUp(Exception):
    """The demo's duration has passed."""


def demo_settings(base: Settings, world: WorldConfig, now_ms: int) -> Settings:
    """The stack's settings for a demo that starts at `now_ms` (wall)."""
    rules = world.demo
    windows = dict.fromkeys(FeedbackSettings().windows_ms, rules.window_ms)
    clock = ClockSettings(origin_wall_ms=now_ms, origin_ms=now_ms, rate=rules.clock_rate)
    feedback = base.feedback.model_copy(update={"windows_ms": windows})
    # A scheduled update would change the ranker amid the phases that the table compares.
    own = {"home": base.home / DEMO, "clock": clock, "feedback": feedback, "updates": {}}
    return base.model_copy(update=own, deep=True)


def _gate_text(update: LearningStatus | None) -> str:
    if update is None:
        return "the demo ended before an update"
    return {
        "promoted": "the challenger was promoted",
        "refused": "the challenger was refused; the previous release stays live",
        "waiting": "too little matured feedback for an update",
    }.get(update.outcome, update.outcome or "the update failed: see logs/learning.log")


def _print_step(text: str) -> None:
    out.print(f"{text} …", style="dim")


def _print_report(report: Report) -> None:
    out.print(styled((report.service, "bold"), " ", report.text))
    if report.log:
        out.print(report.log, style="dim")
