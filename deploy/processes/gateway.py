"""The process `gateway`: recommendations, events and the console over HTTP.

Knows uvicorn, its limits and how many workers answer. Does not know the routes (`serving.http`)
nor how workers are kept running (`deploy.processes.workers`).
"""

from __future__ import annotations

from functools import partial

import uvicorn

from deploy import wiring
from deploy.processes.lifecycle import Process
from deploy.processes.serving_dependencies import serving_dependencies
from deploy.processes.workers.board import Board
from deploy.processes.workers.pool import WorkerPool
from deploy.processes.workers.worker import Worker, shared_socket
from serving.console.hub import EventHub
from serving.console.live import LiveReader
from serving.http.app import create_app
from serving.monitoring.metrics import Metrics
from serving.monitoring.workers import MetricFiles
from serving.state.catalogue import LiveCatalogue
from serving.state.reached import Reached
from streams.catalogue import CatalogueLog
from streams.contract.bounds import future_limit_ms


def run(process: Process) -> int:
    """Serves HTTP until stopped."""
    if process.settings.gateway.workers > 1:
        return _run_workers(process)
    deps = serving_dependencies(process)
    config = uvicorn.Config(
        create_app(deps),
        host=process.settings.gateway.host,
        port=process.settings.gateway.port,
        log_level="warning",
        log_config=None,  # the process's own
        timeout_graceful_shutdown=3,  # open event streams must not hold up a stop
    )
    process.ready()
    uvicorn.Server(config).run()
    return 0 if process.stop.is_set() else 1


def _run_workers(process: Process) -> int:
    settings = process.settings
    address = settings.gateway.host, settings.gateway.port
    shared_socket(*address, alone=True).close()  # raises if another program has the port
    board, files = (
        Board(settings.gateway.workers),
        MetricFiles(settings.home / f"{process.label}-metrics"),
    )
    files.clear()
    reached = Reached(LiveCatalogue(CatalogueLog(settings.log_dir).load()))

    def work(number: int) -> int:
        return Worker(process.forked(), number, board, files, reached).run()

    pool = WorkerPool(
        settings.gateway.workers,
        work,
        process.stop,
        prepare=partial(_read_on, process, reached),
        ended=files.ended,
        board=board,
    )
    with shared_socket(*address):  # does not listen: holds the port while no worker runs
        return pool.run(process.ready)


def _read_on(process: Process, reached: Reached) -> None:
    """Brings `reached` up to date. Its connections are closed again before the process forks."""
    bus = wiring.bus(process.settings, ensure_topics=True)
    latest_ms = partial(
        future_limit_ms,
        wiring.clock(process.settings.clock),
        wiring.ingest_config(process.settings).limits.future_ms,
    )
    forget = reached.activity.forget
    reader = LiveReader(bus, reached, Metrics(), EventHub(), on_erasure=forget, latest_ms=latest_ms)
    reader.read_on()
    reached.catalogue.index()  # once, for all workers
    del bus
