"""Keeps the services of a stack running: starts them in order, restarts them, stops them.

Knows child processes, crashes and timeouts. Does not know what the services are
(`deploy.stack`) nor how a frozen one is recognized (`deploy.services.liveness`). One thread starts every child and lives until `stop`: the kernel ends a
child when the thread that started it ends, so no child outlives a killed supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from deploy.services.liveness import (
    ChildWatch,
    FreezeLimits,
    Silence,
    StateWatch,
    children_of,
    probe,
)
from deploy.services.process import Child, Service, ServiceFailed

Phase = Literal["starting", "running", "waiting", "stopped"]
WATCH_S = 0.2
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 20.0
HEALTHY_AFTER_S = 30.0  # a crash after this long counts as the first one in a row
LOOK_EVERY_S = 0.5  # at the states of processes


@dataclass(frozen=True)
class Supervised:
    """A service and how to keep it running.

    `after_start` runs after every start and restart, to restore what a restart has lost.
    `answers` is asked every `check_every_s` while the service runs; it takes about a second at
    most. `child_killed`: for a service with child processes that do not recover by themselves,
    called in a thread of its own with the command line of one that was killed. A child that a
    signal has stopped is killed first.
    """

    service: Service
    ready_within_s: float = 60.0
    grace_s: float = 8.0
    answers: Callable[[], bool] | None = None
    check_every_s: float = 2.0
    child_killed: Callable[[Sequence[str]], None] | None = None
    after_start: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self.service.name


@dataclass(frozen=True)
class Report:
    """A crash or a recovery. On a crash `log` holds the last lines of the service's log."""

    service: str
    text: str
    log: str = ""


@dataclass
class _State:
    spec: Supervised
    wave: int
    child: Child
    phase: Phase = "starting"
    since: float = field(default_factory=time.monotonic)  # start of the phase
    crashes: int = 0  # in a row
    restarts: int = 0  # in all
    silence: Silence = field(default_factory=Silence)
    stopped: StateWatch = field(default_factory=lambda: StateWatch(b"T"))
    children: ChildWatch = field(default_factory=ChildWatch)
    looked: float = 0.0
    first: bool = True  # not ready yet since `start`, which then raises its failure
    failure: Exception | None = None

    def set_phase(self, phase: Phase) -> None:
        self.phase, self.since, self.silence.count = phase, time.monotonic(), 0

    def lasted_s(self) -> float:
        return time.monotonic() - self.since


@dataclass(frozen=True)
class ServiceStatus:
    """One row of the status table."""

    name: str
    phase: Phase
    pid: int | None
    restarts: int


@dataclass
class Supervisor:
    """Owns the child processes of one stack. `report` is called in the supervisor's thread.

    A service that runs and is frozen by `limits` is killed and started again.
    """

    report: Callable[[Report], None]
    limits: FreezeLimits = field(default_factory=FreezeLimits)
    _waves: int = 0
    _states: dict[str, _State] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._spawner = ThreadPoolExecutor(1, "supervisor")
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    def start(self, services: Sequence[Supervised]) -> None:
        """Starts these in parallel; returns when all answer.

        Raises:
            ServiceUnavailable, ServiceFailed: one is not available or did not start. The
                others keep running: call `stop`.
        """
        wave = self._waves
        self._waves += 1
        states = [_State(spec, wave, self._spawn(spec)) for spec in services]
        with self._lock:
            self._states.update((state.spec.name, state) for state in states)
        for state in states:
            self._probe(state)
        while any(state.first and state.failure is None for state in states):
            if self._stopping.wait(0.02):
                raise ServiceFailed("stopped while starting")
        for state in states:
            if state.failure is not None:
                raise state.failure

    def stop(self) -> None:
        """Stops all services, the latest wave first; a child that ignores SIGTERM is killed."""
        self._stopping.set()
        self._watcher.join()
        with self._lock:
            states = list(self._states.values())
        for wave in range(self._waves - 1, -1, -1):
            _stop_together([state for state in states if state.wave == wave])
        self._spawner.shutdown()

    def restart(self, names: Collection[str]) -> None:
        """Restarts these at once; it does not count as a crash."""
        with self._lock:
            states = [state for name, state in self._states.items() if name in names]
        running = [state for state in states if state.phase == "running"]
        for state in running:
            state.phase = "stopped"  # the watcher ignores it while it ends
        _stop_together(running)
        for state in running:
            state.crashes = 0
            state.set_phase("waiting")

    def status(self) -> list[ServiceStatus]:
        with self._lock:
            return [
                ServiceStatus(
                    state.spec.name,
                    state.phase,
                    state.child.pid if state.child.alive() else None,
                    state.restarts,
                )
                for state in self._states.values()
            ]

    def _spawn(self, spec: Supervised) -> Child:
        return self._spawner.submit(lambda: Child(spec.name, spec.service.command())).result()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S):
            with self._lock:
                states = list(self._states.values())
            for state in states:
                if not self._stopping.is_set():
                    self._check(state)

    def _check(self, state: _State) -> None:
        if state.phase == "starting":
            self._check_started(state)
        elif state.phase == "running" and not state.child.alive():
            self._crashed(state, f"ended with code {state.child.exit_code()}")
        elif state.phase == "running" and (why := self._frozen(state)):
            state.child.kill()  # it would not see a request to end
            self._crashed(state, why)
        elif state.phase == "waiting" and state.lasted_s() >= backoff_s(state.crashes):
            self._restart(state)

    def _check_started(self, state: _State) -> None:
        """Checks once whether a starting service is ready, or has failed."""
        try:
            if not state.child.alive():
                raise ServiceFailed(f"ended with code {state.child.exit_code()} while starting")
            if not state.spec.service.ready():
                if state.lasted_s() > state.spec.ready_within_s:
                    raise ServiceFailed(f"did not answer within {state.spec.ready_within_s:g} s")
                return
            if state.spec.after_start is not None:
                state.spec.after_start()
        except Exception as error:
            self._failed_to_start(state, error)
            return
        state.set_phase("running")
        if not state.first:
            self.report(Report(state.spec.name, "answers again"))
        state.first = False

    def _failed_to_start(self, state: _State, error: Exception) -> None:
        if not state.first:
            self._crashed(state, str(error))
            return
        state.child.stop(1.0)
        where = f"last lines of {state.child.command.log_path}:\n{state.child.cause()}"
        state.failure = ServiceFailed(f"{state.spec.name} {error}; {where}")
        state.set_phase("stopped")

    def _probe(self, state: _State) -> None:
        """Starts the thread that asks a service for signs of life."""
        if state.spec.answers is None or not self.limits.unanswered_s:
            return
        threading.Thread(
            target=probe,
            args=(
                state.spec.answers,
                lambda: state.phase == "running",
                state.silence,
                self._stopping,
                state.spec.check_every_s,
            ),
            name=f"probe-{state.spec.name}",
            daemon=True,
        ).start()

    def _frozen(self, state: _State) -> str:
        """Why a running service counts as frozen; "" if it does not."""
        silent_s = state.silence.lasts_s()
        if self.limits.unanswered_s and silent_s >= self.limits.unanswered_s:
            return f"did not answer for {silent_s:.0f} s"
        if time.monotonic() - state.looked < LOOK_EVERY_S:
            return ""
        state.looked, pid = time.monotonic(), state.child.pid
        children = list(children_of(pid)) if state.spec.child_killed is not None else []
        if self.limits.stopped_s:
            stopped = state.stopped.longer_than([pid, *children], self.limits.stopped_s)
            if pid in stopped:
                return "was stopped by a signal (SIGSTOP)"
            self._kill_stopped(state, stopped)
        self._tell_killed(state, children)
        return ""

    def _kill_stopped(self, state: _State, children: Sequence[int]) -> None:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            text = f"its process {pid} was stopped by a signal (SIGSTOP) and is killed"
            self.report(Report(state.spec.name, text))

    def _tell_killed(self, state: _State, children: Sequence[int]) -> None:
        if state.spec.child_killed is None:
            return
        for command in state.children.killed(children):
            threading.Thread(
                target=state.spec.child_killed,
                args=(command,),
                name=f"killed-{state.spec.name}",
                daemon=True,
            ).start()

    def _crashed(self, state: _State, what: str) -> None:
        state.child.stop(1.0)  # with the processes that it started
        ran_well = state.phase == "running" and state.lasted_s() >= HEALTHY_AFTER_S
        state.crashes = 1 if ran_well else state.crashes + 1
        state.set_phase("waiting")
        pause = f"{what}; starting it again in {backoff_s(state.crashes):g} s"
        self.report(Report(state.spec.name, pause, state.child.cause(12)))

    def _restart(self, state: _State) -> None:
        state.restarts += 1
        try:
            state.child = self._spawn(state.spec)
            state.set_phase("starting")
        except Exception as error:
            self._crashed(state, f"could not be started: {error}")


def _stop_together(states: Sequence[_State]) -> None:
    for state in states:
        state.child.terminate()
    for state in states:
        state.child.stop(state.spec.grace_s)
        state.set_phase("stopped")


def backoff_s(crashes: int) -> float:
    """Pause before the next try: doubles with every crash in a row, up to the longest."""
    return float(min(FIRST_BACKOFF_S * 2 ** (crashes - 1), LONGEST_BACKOFF_S)) if crashes else 0.0
