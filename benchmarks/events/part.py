"""The path with the user fold and the log alone: `python -m benchmarks.events.part NAME`.

Knows the same loops, handlers and stores as `deploy.process`, fewer of them.
"""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from deploy import state, wiring
from deploy.process import BEHIND_S, CACHED_ROWS, COMBINED_BYTES
from deploy.running import Process
from streams.bus.delivery import BatchHandler
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import EVENTS_BY_USER
from streams.workers.worker import Rounds, run_worker


def user_door(process: Process) -> int:
    """Admission and sequencing, without the shuffles that nobody reads."""
    from streams.ingest.service import run

    bus = wiring.bus(process.settings, ensure_topics=True)
    process.ready()
    limits = wiring.limits(process.settings)
    run(bus, clock=wiring.clock(process.settings.clock), limits=limits, stop=process.stop,
        entities=("user",))  # fmt: skip
    return 0


def log(process: Process) -> int:
    from streams.event_log import EventLog

    return _work(process, EventLog(process.settings.log_dir).append, Rounds())


def user_fold(process: Process) -> int:
    from features.live.worker import fold_delivery, folded_schema

    store = wiring.feature_store(process.settings, cached_rows=CACHED_ROWS)
    store.generation()
    rounds = Rounds(COMBINED_BYTES, behind_s=BEHIND_S, across=True)
    return _work(process, fold_delivery(store, "user"), rounds, folded_schema("user"))


def _work(
    process: Process, handler: BatchHandler, rounds: Rounds, schema: pa.Schema = EVENT_SCHEMA
) -> int:
    wiring.bus(process.settings, ensure_topics=True)
    return run_worker(
        process.name,
        {EVENTS_BY_USER: handler},
        bootstrap_servers=process.settings.broker.bootstrap_servers,
        data_dir=process.settings.home / "faust",
        stop=process.stop,
        ready=process.ready,
        rounds=rounds,
        schemas={EVENTS_BY_USER: schema},
    )


PARTS: dict[str, Callable[[Process], int]] = {"user_door": user_door, "log": log,
                                              "user_fold": user_fold}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events.part")
    parser.add_argument("name", choices=sorted(PARTS))
    parser.add_argument("--home", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    process = Process(given.name, state.read_settings(given.home))
    process.observe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop.set())
    return PARTS[given.name](process)


if __name__ == "__main__":
    raise SystemExit(main())
