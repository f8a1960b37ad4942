"""The door in a process of its own, for tests that kill it.

Usage: batcher_process.py BOOTSTRAP GROUP DIRECTORY
Polls are cut to 200 records, so that one run makes hundreds of transactions. Writes
DIRECTORY/ready once its modules are loaded.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from streams import batcher, loop
from streams.admission import AdmissionLimits
from streams.clock import WallClock
from streams.kafka_bus import KafkaBus


def main() -> None:
    bootstrap, group, folder = sys.argv[1:]
    loop.MAX_POLL = 200
    bus = KafkaBus(bootstrap, session_timeout_ms=1_000)
    (Path(folder) / "ready").touch()
    batcher.run(
        bus, clock=WallClock(), limits=AdmissionLimits(), stop=threading.Event(), group=group
    )


if __name__ == "__main__":
    main()
