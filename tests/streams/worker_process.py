"""A worker as a process, for tests that kill it. It logs events and records its handler calls.

Usage:
  worker_process.py NAME TOPIC BOOTSTRAP DIRECTORY SESSION_TIMEOUT_S [fail|slow|combine] [beside]

Writes DIRECTORY/ready once partitions are assigned and one line per message to
DIRECTORY/handled ("topic_id partition offset rows"). With `combine`, DIRECTORY/combined takes the
place of the event log: one line per handler call, the number of its messages.
`beside`: a second member, next to one without it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc

from streams.bus.delivery import MESSAGE_OFFSET, Delivery, in_order
from streams.event_log import EventLog
from streams.workers.batching import BatchingPolicy
from streams.workers.config import WorkerConfig
from streams.workers.retry import RetryPolicy
from streams.workers.worker import run_worker


def main() -> int:
    name, topic, bootstrap, folder, session_timeout, *mode = sys.argv[1:]
    directory = Path(folder)
    log = EventLog(directory / "log")

    def record(delivery: Delivery) -> None:
        if "fail" in mode and not (directory / "repaired").exists():
            raise RuntimeError("the store is down")
        if "slow" in mode:
            time.sleep(0.02)
        stamp = delivery.stamp
        with open(directory / "handled", "a") as file:
            line = f"{stamp.topic_id} {stamp.partition} {stamp.offset} {delivery.table.num_rows}\n"
            file.write(line)

    def record_combined(delivery: Delivery) -> None:
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
            record(part)

    combining = "combine" in mode
    member = f"{name}-{2 if 'beside' in mode else 1}"
    return run_worker(
        name,
        {topic: record_combined if combining else in_order(log.append, record)},
        WorkerConfig(
            bootstrap_servers=bootstrap,
            data_dir=directory,
            instance_id=member if float(session_timeout) >= 6 else None,
            session_timeout_s=float(session_timeout),
            retry=RetryPolicy(handler_s=1.5, topics_s=20.0),
            batching=BatchingPolicy(20_000 if combining else 0),
        ),
        ready=lambda: (directory / "ready").write_text(str(time.time())) and None,
    )


if __name__ == "__main__":
    sys.exit(main())
