"""The door in a process of its own, for tests that kill it.

Usage: batcher_process.py BOOTSTRAP GROUP DIRECTORY DOORS
Polls are cut to 200 records, so that one run makes hundreds of transactions. Writes
DIRECTORY/ready once its modules are loaded.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from streams.bus import consume as loop
from streams.bus.kafka.bus import KafkaBus
from streams.contract.clock import WallClock
from streams.ingest import service as batcher
from streams.ingest.admission import AdmissionLimits


def main() -> None:
    bootstrap, group, folder, doors = sys.argv[1:]
    loop.MAX_POLL = 200
    bus = KafkaBus(bootstrap, session_timeout_ms=1_000)
    (Path(folder) / "ready").touch()
    limits, stop = AdmissionLimits(), threading.Event()
    batcher.run(bus, clock=WallClock(), limits=limits, stop=stop, group=group, doors=int(doors))


if __name__ == "__main__":
    main()
