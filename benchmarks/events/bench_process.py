"""The path with only the user fold and the log: `python -m benchmarks.events.bench_process NAME`.

Knows a subset of the loops, handlers and stores of `deploy.processes`. Does not know what is
measured.
"""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from deploy import state, wiring
from deploy.processes.lifecycle import Process
from deploy.processes.tuning import BEHIND_S, CACHED_ROWS, COMBINED_BYTES
from streams.bus.delivery import BatchHandler
from streams.codec.decode import prepare
from streams.contract.schema import EVENT_SCHEMA
from streams.contract.topics import EVENTS_BY_USER
from streams.workers.batching import BatchingPolicy
from streams.workers.config import WorkerConfig
from streams.workers.worker import run_worker


def user_ingest(process: Process) -> int:
    """Admission and sequencing, without the fan-out to other entities."""
    from streams.ingest.service import run

    bus = wiring.bus(process.settings, ensure_topics=True)
    prepare()
    process.ready()
    config = replace(wiring.ingest_config(process.settings), entities=("user",))
    run(bus, config, clock=wiring.clock(process.settings.clock), stop=process.stop)
    return 0


def log(process: Process) -> int:
    from streams.event_log import EventLog

    return _work(process, EventLog(process.settings.log_dir).append, BatchingPolicy())


def user_fold(process: Process) -> int:
    from features.live.worker import fold_delivery, fold_input_schema

    store = wiring.feature_store(process.settings, cached_rows=CACHED_ROWS)
    store.rebuild_id()
    batching = BatchingPolicy(COMBINED_BYTES, max_lag_wait_s=BEHIND_S, across_partitions=True)
    return _work(process, fold_delivery(store, "user"), batching, fold_input_schema("user"))


def _work(
    process: Process,
    handler: BatchHandler,
    batching: BatchingPolicy,
    schema: pa.Schema = EVENT_SCHEMA,
) -> int:
    wiring.bus(process.settings, ensure_topics=True)
    return run_worker(
        process.name,
        {EVENTS_BY_USER: handler},
        WorkerConfig(
            bootstrap_servers=process.settings.broker.bootstrap_servers,
            data_dir=process.settings.home / "faust",
            batching=batching,
            schemas={EVENTS_BY_USER: schema},
        ),
        stop=process.stop,
        ready=process.ready,
    )


PROCESSES: dict[str, Callable[[Process], int]] = {
    "batcher-user": user_ingest,
    "log-writer-user": log,
    "features-user": user_fold,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events.bench_process")
    parser.add_argument("name", choices=sorted(PROCESSES))
    parser.add_argument("--home", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    process = Process(given.name, state.read_settings(given.home))
    process.observe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: process.stop.set())
    return PROCESSES[given.name](process)


if __name__ == "__main__":
    raise SystemExit(main())
