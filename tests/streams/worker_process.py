"""A worker in a process of its own, for tests that kill it: log and a trail of handlings.

Usage:
  worker_process.py NAME TOPIC BOOTSTRAP DIRECTORY SESSION_TIMEOUT_S [fail|slow|combine] [beside]

Writes DIRECTORY/ready once partitions are assigned and one line per handling to
DIRECTORY/handled ("epoch partition offset rows"). With `combine` the trail has a line per
message too, and "combined" in place of the log says how many messages each handling had.
`beside`: a member of its own, next to one without it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc

from streams.bus.delivery import MESSAGE_OFFSET, Delivery, in_order
from streams.event_log import EventLog
from streams.workers.worker import Patience, Rounds, run_worker


def main() -> int:
    name, topic, bootstrap, folder, session_timeout, *mode = sys.argv[1:]
    directory = Path(folder)
    log = EventLog(directory / "log")

    def trail(delivery: Delivery) -> None:
        if "fail" in mode and not (directory / "mended").exists():
            raise RuntimeError("the store is down")
        if "slow" in mode:
            time.sleep(0.02)
        stamp = delivery.stamp
        with open(directory / "handled", "a") as file:
            line = f"{stamp.epoch} {stamp.partition} {stamp.offset} {delivery.table.num_rows}\n"
            file.write(line)

    def trail_of_many(delivery: Delivery) -> None:
        time.sleep(0.02)
        parts = [delivery]
        if MESSAGE_OFFSET in delivery.table.column_names:
            offsets = delivery.table[MESSAGE_OFFSET]
            parts = [
                replace(
                    delivery,
                    stamp=replace(delivery.stamp, offset=offset),
                    table=delivery.table.filter(pc.equal(offsets, offset)),
                )
                for offset in offsets.unique().to_pylist()
            ]
        with open(directory / "combined", "a") as file:
            file.write(f"{len(parts)}\n")
        for part in parts:
            trail(part)

    combining = "combine" in mode
    member = f"{name}-{2 if 'beside' in mode else 1}"
    return run_worker(
        name,
        {topic: trail_of_many if combining else in_order(log.append, trail)},
        rounds=Rounds(20_000 if combining else 0),
        bootstrap_servers=bootstrap,
        data_dir=directory,
        ready=lambda: (directory / "ready").write_text(str(time.time())) and None,
        patience=Patience(handler_s=1.5, topics_s=20.0),
        session_timeout_s=float(session_timeout),
        instance_id=member if float(session_timeout) >= 6 else None,
    )


if __name__ == "__main__":
    sys.exit(main())
