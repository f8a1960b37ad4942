"""How the parts are: asked about on threads of its own, so that asking never waits.

Knows a check per part. Does not know what is done about a part that is down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Check = Callable[[], str]
"""Returns "" when the part is up, otherwise what is wrong."""

_EVERY_S = 1.0
_SILENT_S = 6.0  # a check that takes longer than this counts as down


@dataclass(frozen=True)
class _Verdict:
    problem: str
    asked_s: float
    since_s: float


class Health:
    """`now()` is the last verdict on each part, at most about a second old."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)
        now = time.monotonic()
        self._verdicts = {name: _Verdict("not asked yet", now, now) for name in checks}
        self._stop = threading.Event()

    def start(self) -> None:
        for name in self._checks:
            threading.Thread(
                target=self._keep, args=(name,), name=f"health-{name}", daemon=True
            ).start()

    def stop(self) -> None:
        self._stop.set()

    def ask(self) -> None:
        """Asks every part once, here and now."""
        for name in self._checks:
            self._ask(name)

    def up(self, name: str) -> bool:
        return self._problem(self._verdicts[name]) == ""

    def now(self) -> dict[str, dict[str, Any]]:
        return {name: self._told(verdict) for name, verdict in self._verdicts.items()}

    def _told(self, verdict: _Verdict) -> dict[str, Any]:
        problem = self._problem(verdict)
        told: dict[str, Any] = {
            "status": "down" if problem else "up",
            "for_s": round(time.monotonic() - verdict.since_s, 1),
        }
        return told | {"reason": problem} if problem else told

    def _problem(self, verdict: _Verdict) -> str:
        if time.monotonic() - verdict.asked_s > _SILENT_S:
            return "the check does not return"
        return verdict.problem

    def _ask(self, name: str) -> None:
        try:
            problem = self._checks[name]()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        now, before = time.monotonic(), self._verdicts[name]
        same = bool(problem) == bool(before.problem)
        self._verdicts[name] = _Verdict(problem, now, before.since_s if same else now)

    def _keep(self, name: str) -> None:
        while not self._stop.is_set():
            self._ask(name)
            self._stop.wait(_EVERY_S)
