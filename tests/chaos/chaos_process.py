"""One of the stack's own processes, as `deploy.process` runs it, with shorter limits.

Usage: chaos_process.py ROLE --home HOME --instance NAME, with CHAOS_SKEW_MS (the error of its
clock) in the environment.
Polls are limited to 100 records, so that a run makes many transactions; a silent member loses
its partitions after 1.5 s. The Feast registry is not written: its import would take most of the
process's time, and nothing here reads it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from typing import Any

from deploy import process, wiring
from features.feast.registry import RegisteredFeatureStore
from streams.bus import consume
from streams.bus.kafka.bus import KafkaBus
from streams.contract.clock import Clock
from streams.workers.config import WorkerConfig

SESSION_MS = 1_500
MAX_POLL = 100


class _SkewedClock:
    """A clock that is `skew_ms` ahead of another."""

    def __init__(self, clock: Clock, skew_ms: int) -> None:
        self._clock, self._skew_ms = clock, skew_ms

    def now_ms(self) -> int:
        return self._clock.now_ms() + self._skew_ms


def main() -> int:
    faulthandler.register(signal.SIGUSR1)  # writes every thread's stack to the log
    _override(consume, "MAX_POLL", MAX_POLL)
    _override(KafkaBus.__init__.__kwdefaults__, "session_timeout_ms", SESSION_MS)
    _override(WorkerConfig.__init__.__kwdefaults__, "session_timeout_s", SESSION_MS / 1_000)
    _override(RegisteredFeatureStore, "apply", _nothing)
    if skew_ms := int(os.environ.get("CHAOS_SKEW_MS", "0")):
        make_clock = wiring.clock
        _override(wiring, "clock", lambda settings: _SkewedClock(make_clock(settings), skew_ms))
    return process.main(sys.argv[1:])


def _override(owner: Any, name: str, value: object) -> None:
    """Replaces a value; raises if the name does not exist."""
    if isinstance(owner, dict):
        owner[name], _ = value, owner[name]
    else:
        getattr(owner, name)
        setattr(owner, name, value)


def _nothing(_: object) -> None: ...


if __name__ == "__main__":
    raise SystemExit(main())
