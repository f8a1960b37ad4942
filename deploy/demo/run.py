"""`tidemill demo`: the whole loop in one sitting, told as it happens.

Knows the order of events: start, page, replay, training beside a living crowd, release,
preference update, table. Does not know how a part starts (`deploy.stack`), how a model
learns (`deploy.demo.learning`) nor how the crowd decides (`deploy.simulation`).

Its stack runs on an accelerated clock, in a home of its own that each run begins anew.
"""

from __future__ import annotations

import shutil
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from deploy import wiring
from deploy.demo import report as demo_report
from deploy.demo.learning import ALIGNED, REST, Line, learn
from deploy.settings import ClockSettings, FeedbackSettings, Settings
from deploy.simulation.config import WorldConfig
from deploy.simulation.crowd import Crowd, run_until
from deploy.simulation.history import History, history
from deploy.simulation.movielens import ACKNOWLEDGEMENT, load
from deploy.simulation.replay import replay
from deploy.simulation.tally import Tally
from deploy.simulation.truth import Truth, plant
from deploy.stack import Stack
from deploy.state import DEMO
from deploy.supervisor import Report
from streams.contract.topics import BEHAVIOUR, BEHAVIOUR_DEAD, EVENTS_BY_USER

POPULAR, BEFORE, AFTER = "popularity", "before the update", "after the update"
_PATIENCE_S = 60.0  # for the log to hold what was replayed
_SETTLED = 0.999  # of the replayed events: the rest may be in a worker's hands


@dataclass
class Demo:
    """One run. `duration_s` counts from the first page; None goes on until Ctrl-C."""

    settings: Settings
    world: WorldConfig
    console: Console
    duration_s: float | None = None
    seed: int = 0
    tally: Tally = field(default_factory=lambda: Tally(phase=POPULAR))
    first: Line | None = None  # the first release
    verdict: Line | None = None  # the update's end
    _ends_at: float = float("inf")
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Starts everything, lets it live, prints the table, stops everything."""
        data = load()
        settings = demo_settings(self.settings, self.world, time.time_ns() // 1_000_000)
        shutil.rmtree(settings.home, ignore_errors=True)
        stack = Stack(settings, tell=self._tell, step=self._step)
        crowd: threading.Thread | None = None
        try:
            stack.start()
            self._page_is_up(stack)
            end_ms = settings.clock.origin_ms - self.world.replay.gap_ms
            past = history(self.seed, end_ms=end_ms, world=self.world, data=data)
            truth = plant(data, self.world, self.seed)
            truth.write(stack.settings.home)
            self._replay(stack, past)
            crowd = self._let_in(stack, truth, past)
            self._learn(stack)
            self._wait(float("inf"))
        except (KeyboardInterrupt, _TimeIsUp):
            self.console.print("\n[dim]counting and stopping …[/]")
        finally:
            self._over.set()
            if crowd is not None:
                crowd.join(10.0)
            self._end(stack)

    def _end(self, stack: Stack) -> None:
        try:
            if stack.settings.broker.bootstrap_servers:
                self.console.print(demo_report.table(self._result(stack.settings)))
        finally:
            stack.stop()

    def _step(self, text: str) -> None:
        self.console.print(f"[dim]{text} …[/]")

    def _tell(self, report: Report) -> None:
        self.console.print(f"[bold]{report.service}[/] {report.text}")
        if report.log:
            self.console.print(report.log, style="dim", markup=False)

    def _page_is_up(self, stack: Stack) -> None:
        """The duration counts from here: a person can open the page now."""
        _await_page(stack.page)
        self._ends_at = time.monotonic() + (self.duration_s or float("inf"))
        self.console.print(f"\nThe page: [bold]{stack.page}[/]")
        self.console.print(
            f"[dim]{ACKNOWLEDGEMENT}; labelled replayed. The crowd is labelled simulated. "
            f"One second here is {self.world.demo.clock_rate:g} s on the stack's clock.[/]\n"
        )

    def _left_s(self) -> float:
        return self._ends_at - time.monotonic()

    def _wait(self, seconds: float) -> None:
        """Sleeps; raises `_TimeIsUp` at the demo's end."""
        until = min(time.monotonic() + seconds, self._ends_at)
        while time.monotonic() < until:
            time.sleep(min(0.2, max(0.0, until - time.monotonic())))
        if self._left_s() <= 0:
            raise _TimeIsUp

    def _replay(self, stack: Stack, past: History) -> None:
        with self._bars() as bars:
            sent = bars.add_task("replaying histories", total=len(past.frame))
            kept = bars.add_task("kept in the log", total=len(past.frame))
            replay(
                wiring.bus(stack.settings),
                past,
                stack.settings.home,
                progress=lambda done, total: bars.update(sent, completed=done, total=total),
                log_dir=stack.settings.log_dir,
            )
            deadline = time.monotonic() + _PATIENCE_S
            while time.monotonic() < deadline:
                rows = handled(stack.settings, "facts") or 0
                bars.update(kept, completed=rows)
                if rows >= _SETTLED * len(past.frame):
                    return
                self._wait(0.5)
        self.console.print("[yellow]the log is behind; training begins on what it holds[/]")

    def _let_in(self, stack: Stack, truth: Truth, past: History) -> threading.Thread:
        """Opens the gates to the crowd, in a thread of its own."""
        crowd = Crowd(
            truth,
            past.items,
            stack.page,
            wiring.clock(stack.settings.clock),
            self.tally,
            seed=self.seed,
            clock_rate=stack.settings.clock.rate,
            api_key=next(iter(stack.settings.security.api_keys), None),
        )
        thread = threading.Thread(target=run_until, args=(crowd, self._over), name="crowd")
        thread.start()
        return thread

    def _learn(self, stack: Stack) -> None:
        """First release, some life on it, one update; the other models learn meanwhile."""
        with self._bars() as bars:
            if self._child(stack, bars, "train", [ALIGNED]) is None:
                bars.console.print("[yellow]no release came of training: logs/learning.log[/]")
            beside = threading.Thread(
                target=self._child, args=(stack, bars, "train", REST), name="learning", daemon=True
            )
            beside.start()
            if self.first is not None:
                self._wait(self._gather_s())
                self.verdict = self._child(stack, bars, "update", [ALIGNED])
                self.tally.phase = AFTER
                bars.console.print(f"the gate: [bold]{_gate_words(self.verdict)}[/]")
            while beside.is_alive():
                self._wait(0.5)

    def _gather_s(self) -> float:
        """Long enough for feedback to mature, short enough to see what came of the update."""
        rules = self.world.demo
        matured_s = rules.window_ms / rules.clock_rate / 1000
        wanted = rules.gather_s + matured_s
        return max(matured_s, min(wanted, self._left_s() - 2 * rules.after_s))

    def _child(self, stack: Stack, bars: Progress, what: str, names: Sequence[str]) -> Line | None:
        """Runs a learning child under bars; its last line, or None when it failed or was cut."""
        last: Line | None = None
        tasks = {name: bars.add_task(f"{what} {name}", total=1.0) for name in names}

        def tell(line: Line) -> None:
            nonlocal last
            last = line
            if what == "train" and ALIGNED in line.versions and self.first is None:
                self.first, self.tally.phase = line, BEFORE
            text = f"{what} {line.model}: {line.what}"[:60]
            bars.update(tasks[line.model], completed=line.share, description=text)

        log = stack.settings.home / "logs" / "learning.log"
        status = learn(stack.settings.home, [what, *names], tell, log, max(0.0, self._left_s()))
        return last if status == 0 else None

    def _bars(self) -> Progress:
        columns = (TextColumn("{task.description:<60}"), BarColumn(), TaskProgressColumn())
        return Progress(*columns, TimeElapsedColumn(), console=self.console)

    def _result(self, settings: Settings) -> demo_report.Result:
        tally, verdict = self.tally, self.verdict
        versions = dict(self.first.versions) if self.first else {}
        after = dict(verdict.versions) if verdict and verdict.versions else versions
        served = {POPULAR: {}, BEFORE: versions, AFTER: after}
        phases = {phase: str(models.get(ALIGNED, "none")) for phase, models in served.items()}
        return demo_report.Result(
            flow=_flow(settings),
            latencies=tally.latencies(),
            failures=dict(tally.failures),
            fallbacks=dict(tally.fallbacks),
            returns=(tally.returns[True], sum(tally.returns.values())),
            before=versions,
            after=after,
            gate=_gate_words(verdict),
            reasons=verdict.reasons[:4] if verdict else [],
            rates={
                phase: (tally.click_rate(phase, version), tally.order_rate(phase, version))
                for phase, version in phases.items()
            },
        )


class _TimeIsUp(Exception):
    """The demo's duration has passed."""


def demo_settings(base: Settings, world: WorldConfig, now_ms: int) -> Settings:
    """The stack's settings for a demo that starts at `now_ms` (wall)."""
    rules = world.demo
    windows = dict.fromkeys(FeedbackSettings().windows_ms, rules.window_ms)
    clock = ClockSettings(origin_wall_ms=now_ms, origin_ms=now_ms, rate=rules.clock_rate)
    feedback = base.feedback.model_copy(update={"windows_ms": windows})
    return base.model_copy(
        update={"home": base.home / DEMO, "clock": clock, "feedback": feedback}, deep=True
    )


def handled(settings: Settings, process: str, topic: str = EVENTS_BY_USER) -> int | None:
    """How many events a worker has handled, by its own counter; None when it does not answer."""
    port = settings.telemetry.metrics_ports.get(process)
    name = f'tidemill_events_handled_total{{topic="{topic}"}} '
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    return next(
        (int(float(line[len(name) :])) for line in text.splitlines() if line.startswith(name)), 0
    )


def _flow(settings: Settings) -> demo_report.Flow:
    from streams.bus.contract import BusError

    counts: Mapping[str, int | None]
    try:
        bus = wiring.bus(settings)
        counts = {
            topic: sum(end - start for start, end in bus.ends(topic).values())
            for topic in (BEHAVIOUR, BEHAVIOUR_DEAD)
        }
    except BusError:
        counts = {}
    return demo_report.Flow(
        counts.get(BEHAVIOUR), handled(settings, "features"), counts.get(BEHAVIOUR_DEAD)
    )


def _gate_words(verdict: Line | None) -> str:
    if verdict is None:
        return "the demo ended before an update"
    return {
        "promoted": "the challenger was promoted",
        "refused": "the challenger was refused; the release before goes on",
        "waiting": "too little matured feedback for an update",
    }.get(verdict.ended, verdict.ended or "the update failed: see logs/learning.log")


def _await_page(page: str, patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            with urllib.request.urlopen(page, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
