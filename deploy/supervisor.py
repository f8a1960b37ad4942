"""Keeps the parts of a stack running: starts them in order, restarts what dies, stops all.

Knows services, crashes and patience. Does not know what the parts are
(`deploy.stack`). Every child is started by the supervisor's one thread, which
lives until `stop`: the kernel ends a child when the thread that started it ends,
so nothing outlives the supervisor even when that is killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from deploy.services.process import Child, Part, PartFailed

Phase = Literal["starting", "running", "waiting", "stopped"]
WATCH_S = 0.2
FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 20.0
HEALTHY_AFTER_S = 30.0  # having run this long, a crash counts as the first one again
DEAF_CHECKS = 3  # this many unanswered checks in a row, and it is restarted


@dataclass(frozen=True)
class Service:
    """A part and how to keep it.

    `after_start` runs each time the part answers (again): what a restart has
    emptied is filled there. `check_every_s` > 0 asks `part.ready()` that often and
    restarts a part that lives but no longer answers.
    """

    part: Part
    ready_within_s: float = 60.0
    grace_s: float = 8.0
    check_every_s: float = 0.0
    after_start: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self.part.name


@dataclass(frozen=True)
class Report:
    """Something worth telling a person. `log` holds the part's last lines on a crash."""

    service: str
    text: str
    log: str = ""


@dataclass
class _Kept:
    service: Service
    wave: int
    child: Child
    phase: Phase = "starting"
    since: float = field(default_factory=time.monotonic)  # when the phase began
    crashes: int = 0  # in a row
    restarts: int = 0  # in all
    deaf: int = 0  # unanswered checks in a row
    checked: float = 0.0
    first: bool = True  # not yet up for the first time: a failure is the starter's to know
    failure: Exception | None = None

    def turn(self, phase: Phase) -> None:
        self.phase, self.since, self.deaf = phase, time.monotonic(), 0

    def lasted_s(self) -> float:
        return time.monotonic() - self.since


@dataclass(frozen=True)
class ServiceStatus:
    """What a status table shows of one service."""

    name: str
    phase: Phase
    pid: int | None
    restarts: int


@dataclass
class Supervisor:
    """Owns the children of one stack. `tell` receives reports, from the supervisor's thread."""

    tell: Callable[[Report], None]
    _waves: int = 0
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._hands = ThreadPoolExecutor(1, "supervisor")
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()

    def start(self, services: Sequence[Service]) -> None:
        """Starts these side by side; returns when all answer.

        Raises:
            PartUnavailable, PartFailed: one cannot be had or did not come up. Those
                that did stay up: call `stop`.
        """
        wave = self._waves
        self._waves += 1
        kept = [_Kept(service, wave, self._spawn(service)) for service in services]
        with self._lock:
            self._kept.update((one.service.name, one) for one in kept)
        while any(one.first and one.failure is None for one in kept):
            if self._stopping.wait(0.02):
                raise PartFailed("stopped while starting")
        for one in kept:
            if one.failure is not None:
                raise one.failure

    def stop(self) -> None:
        """Stops everything, the latest wave first; a child that does not listen is killed."""
        self._stopping.set()
        self._watcher.join()
        with self._lock:
            kept = list(self._kept.values())
        for wave in range(self._waves - 1, -1, -1):
            _stop_together([one for one in kept if one.wave == wave])
        self._hands.shutdown()

    def restart(self, names: Collection[str]) -> None:
        """Ends these and starts them again at once; they are not counted as crashed."""
        with self._lock:
            kept = [one for name, one in self._kept.items() if name in names]
        running = [one for one in kept if one.phase == "running"]
        for one in running:
            one.phase = "stopped"  # the watcher looks away while it ends
        _stop_together(running)
        for one in running:
            one.crashes = 0
            one.turn("waiting")

    def status(self) -> list[ServiceStatus]:
        with self._lock:
            return [
                ServiceStatus(
                    one.service.name,
                    one.phase,
                    one.child.pid if one.child.alive() else None,
                    one.restarts,
                )
                for one in self._kept.values()
            ]

    def _spawn(self, service: Service) -> Child:
        return self._hands.submit(lambda: Child(service.name, service.part.command())).result()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S):
            with self._lock:
                kept = list(self._kept.values())
            for one in kept:
                if not self._stopping.is_set():
                    self._look_after(one)

    def _look_after(self, one: _Kept) -> None:
        if one.phase == "starting":
            self._see_it_up(one)
        elif one.phase == "running" and not one.child.alive():
            self._crashed(one, f"ended with code {one.child.exit_code()}")
        elif one.phase == "running" and self._is_deaf(one):
            self._crashed(one, f"did not answer {DEAF_CHECKS} times in a row")
        elif one.phase == "waiting" and one.lasted_s() >= backoff_s(one.crashes):
            self._restart(one)

    def _see_it_up(self, one: _Kept) -> None:
        """One look at a part that is starting: up, not yet, or failed."""
        try:
            if not one.child.alive():
                raise PartFailed(f"ended with code {one.child.exit_code()} while starting")
            if not one.service.part.ready():
                if one.lasted_s() > one.service.ready_within_s:
                    raise PartFailed(f"did not answer within {one.service.ready_within_s:g} s")
                return
            if one.service.after_start is not None:
                one.service.after_start()
        except Exception as error:
            self._did_not_start(one, error)
            return
        one.turn("running")
        if not one.first:
            self.tell(Report(one.service.name, "answers again"))
        one.first = False

    def _did_not_start(self, one: _Kept, error: Exception) -> None:
        if not one.first:
            self._crashed(one, str(error))
            return
        one.child.stop(1.0)
        where = f"last lines of {one.child.command.log_path}:\n{one.child.tail()}"
        one.failure = PartFailed(f"{one.service.name} {error}; {where}")
        one.turn("stopped")

    def _is_deaf(self, one: _Kept) -> bool:
        every = one.service.check_every_s
        if not every or time.monotonic() - one.checked < every:
            return False
        one.deaf = 0 if _answers(one.service.part) else one.deaf + 1
        one.checked = time.monotonic()
        return one.deaf >= DEAF_CHECKS

    def _crashed(self, one: _Kept, what: str) -> None:
        one.child.stop(1.0)  # it, and what it had started itself
        ran_well = one.phase == "running" and one.lasted_s() >= HEALTHY_AFTER_S
        one.crashes = 1 if ran_well else one.crashes + 1
        one.turn("waiting")
        pause = f"{what}; starting it again in {backoff_s(one.crashes):g} s"
        self.tell(Report(one.service.name, pause, one.child.tail(12)))

    def _restart(self, one: _Kept) -> None:
        one.restarts += 1
        try:
            one.child = self._spawn(one.service)
            one.turn("starting")
        except Exception as error:
            self._crashed(one, f"could not be started: {error}")


def _answers(part: Part) -> bool:
    try:
        return part.ready()
    except Exception:  # whatever it says wrong, it does not answer well
        return False


def _stop_together(kept: Sequence[_Kept]) -> None:
    for one in kept:
        one.child.terminate()
    for one in kept:
        one.child.stop(one.service.grace_s)
        one.turn("stopped")


def backoff_s(crashes: int) -> float:
    """Pause before the next try: doubles with every crash in a row, up to the longest."""
    return float(min(FIRST_BACKOFF_S * 2 ** (crashes - 1), LONGEST_BACKOFF_S)) if crashes else 0.0
