"""The ingest service as a process, for tests that kill it.

Usage: batcher_process.py BOOTSTRAP GROUP DIRECTORY REPLICAS
Polls are limited to 200 records, so that one run makes hundreds of transactions. Writes
DIRECTORY/ready once its modules are loaded.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from streams.bus import consume
from streams.bus.kafka.bus import KafkaBus
from streams.contract.clock import WallClock
from streams.ingest import service
from streams.ingest.loop import IngestConfig


def main() -> None:
    bootstrap, group, folder, replicas = sys.argv[1:]
    consume.MAX_POLL = 200
    bus = KafkaBus(bootstrap, session_timeout_ms=1_000)
    (Path(folder) / "ready").touch()
    config = IngestConfig(group=group, replicas=int(replicas))
    service.run(bus, config, clock=WallClock(), stop=threading.Event())


if __name__ == "__main__":
    main()
