"""Health of the gateway's services, checked on background threads so that reads never wait.

Knows one check per service. Does not know what happens when a service is down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Check = Callable[[], str]
"""Returns "" when the service is up, otherwise what is wrong."""

_EVERY_S = 1.0
_TIMEOUT_S = 6.0  # a check that takes longer counts as down


@dataclass(frozen=True)
class _CheckResult:
    problem: str
    checked_s: float
    since_s: float  # when the service last changed between up and down


class Health:
    """The last result of each check, about one second old at most."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)
        now = time.monotonic()
        self._results = {name: _CheckResult("not checked yet", now, now) for name in checks}
        self._stop = threading.Event()

    def start(self) -> None:
        for name in self._checks:
            threading.Thread(
                target=self._check_loop, args=(name,), name=f"health-{name}", daemon=True
            ).start()

    def stop(self) -> None:
        self._stop.set()

    def check_all(self) -> None:
        """Runs every check once on the calling thread."""
        for name in self._checks:
            self.check(name)

    def check(self, name: str) -> None:
        """Runs one check now, on the calling thread."""
        try:
            problem = self._checks[name]()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        now, before = time.monotonic(), self._results[name]
        same = bool(problem) == bool(before.problem)
        self._results[name] = _CheckResult(problem, now, before.since_s if same else now)

    def is_up(self, name: str) -> bool:
        return self._problem(self._results[name]) == ""

    def status(self) -> dict[str, dict[str, Any]]:
        """Per service {status: up or down, for_s, reason where down}."""
        return {name: self._status(result) for name, result in self._results.items()}

    def _status(self, result: _CheckResult) -> dict[str, Any]:
        problem = self._problem(result)
        status: dict[str, Any] = {
            "status": "down" if problem else "up",
            "for_s": round(time.monotonic() - result.since_s, 1),
        }
        return status | {"reason": problem} if problem else status

    def _problem(self, result: _CheckResult) -> str:
        if time.monotonic() - result.checked_s > _TIMEOUT_S:
            return "the check does not return"
        return result.problem

    def _check_loop(self, name: str) -> None:
        while not self._stop.is_set():
            self.check(name)
            self._stop.wait(_EVERY_S)
