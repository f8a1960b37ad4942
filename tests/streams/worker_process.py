"""A worker in a process of its own, for tests that kill it: log and a trail of handlings.

Usage: worker_process.py NAME TOPIC BOOTSTRAP DIRECTORY SESSION_TIMEOUT_S [fail|slow]
Writes DIRECTORY/ready once partitions are assigned and one line per handling to
DIRECTORY/handled ("epoch partition offset rows").
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from streams.delivery import Delivery, in_order
from streams.log import EventLog
from streams.worker import Patience, run_worker


def main() -> int:
    name, topic, bootstrap, folder, session_timeout, *mode = sys.argv[1:]
    directory = Path(folder)
    log = EventLog(directory / "log")

    def trail(delivery: Delivery) -> None:
        if mode == ["fail"] and not (directory / "mended").exists():
            raise RuntimeError("the store is down")
        if mode == ["slow"]:
            time.sleep(0.02)
        stamp = delivery.stamp
        with open(directory / "handled", "a") as file:
            line = f"{stamp.epoch} {stamp.partition} {stamp.offset} {delivery.table.num_rows}\n"
            file.write(line)

    return run_worker(
        name,
        {topic: in_order(log.append, trail)},
        bootstrap_servers=bootstrap,
        data_dir=directory,
        ready=lambda: (directory / "ready").write_text(str(time.time())) and None,
        patience=Patience(handler_s=1.5, topics_s=20.0),
        session_timeout_s=float(session_timeout),
        instance_id=f"{name}-1" if float(session_timeout) >= 6 else None,
    )


if __name__ == "__main__":
    sys.exit(main())
