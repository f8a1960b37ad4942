"""One of the stack's own processes, as `deploy.process` runs it, made quick to lose.

Usage: life.py ROLE --home HOME --instance NAME, with CHAOS_SKEW_MS (how far its clock is wrong)
in the environment.
Polls are cut to 100 records, so that a run makes many transactions; a silent member loses its
partitions after 1.5 s. The Feast registry is not written: its import would cost more than
the rest of a life, and nothing here reads it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from typing import Any

from deploy import process, wiring
from features.feast.registry import RegisteredFeatureStore
from streams.bus import consume as loop
from streams.bus.kafka.bus import KafkaBus
from streams.contract.clock import Clock
from streams.workers import worker

SESSION_MS = 1_500
MAX_POLL = 100


class _Wrong:
    """A clock that is `skew_ms` ahead of another."""

    def __init__(self, right: Clock, skew_ms: int) -> None:
        self._right, self._skew_ms = right, skew_ms

    def now_ms(self) -> int:
        return self._right.now_ms() + self._skew_ms


def main() -> int:
    faulthandler.register(signal.SIGUSR1)  # writes every thread's stack to the log
    _set(loop, "MAX_POLL", MAX_POLL)
    _set(KafkaBus.__init__.__kwdefaults__, "session_timeout_ms", SESSION_MS)
    _set(worker.run_worker.__kwdefaults__, "session_timeout_s", SESSION_MS / 1_000)
    _set(RegisteredFeatureStore, "apply", _nothing)
    if skew_ms := int(os.environ.get("CHAOS_SKEW_MS", "0")):
        right = wiring.clock
        _set(wiring, "clock", lambda settings: _Wrong(right(settings), skew_ms))
    return process.main(sys.argv[1:])


def _set(owner: Any, name: str, value: object) -> None:
    """Changes what is there; a name that is not there any more must not pass for changed."""
    if isinstance(owner, dict):
        owner[name], _ = value, owner[name]
    else:
        getattr(owner, name)
        setattr(owner, name, value)


def _nothing(_: object) -> None: ...


if __name__ == "__main__":
    raise SystemExit(main())
