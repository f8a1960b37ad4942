"""One of the stack's own processes, as `deploy.process` runs it, made quick to lose.

Usage: life.py NAME --home HOME, with CHAOS_INSTANCE (the door's name) and CHAOS_SKEW_MS
(how far its clock is wrong) in the environment.
Polls are cut to 100 records, so that a run makes many transactions; a silent member loses its
partitions after 1.5 s. The Feast registry is not written: its import would cost more than
the rest of a life, and nothing here reads it.
"""

from __future__ import annotations

import os
import sys

from deploy import process, wiring
from deploy.settings import ClockSettings
from features.registry import RegisteredFeatureStore
from streams import batcher, loop, worker
from streams.clock import Clock
from streams.kafka_bus import KafkaBus

SESSION_MS = 1_500
MAX_POLL = 100


class _Wrong:
    """A clock that is `skew_ms` ahead of another."""

    def __init__(self, right: Clock, skew_ms: int) -> None:
        self._right, self._skew_ms = right, skew_ms

    def now_ms(self) -> int:
        return self._right.now_ms() + self._skew_ms


def main() -> int:
    loop.MAX_POLL = MAX_POLL
    KafkaBus.__init__.__kwdefaults__["session_timeout_ms"] = SESSION_MS
    worker.run_worker.__kwdefaults__["session_timeout_s"] = SESSION_MS / 1_000
    batcher.run.__kwdefaults__["instance"] = os.environ.get("CHAOS_INSTANCE", "0")
    RegisteredFeatureStore.apply = lambda self: None  # type: ignore[method-assign]
    skew_ms, right = int(os.environ.get("CHAOS_SKEW_MS", "0")), wiring.clock
    if skew_ms:

        def wrong(settings: ClockSettings) -> Clock:
            return _Wrong(right(settings), skew_ms)

        wiring.clock = wrong
    return process.main(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
