"""One of the gateway's workers: the gateway on a port that it shares, and its part of the metrics.

Knows uvicorn, sockets and the gateway's dependencies. Does not know who forks it
(`deploy.processes.workers.pool`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from opentelemetry import trace

from deploy.processes.lifecycle import Process
from deploy.processes.serving_dependencies import serving_dependencies
from deploy.processes.workers.board import Board
from serving.gateway import Gateway, GatewayConfig, GatewayDependencies
from serving.http.app import create_app
from serving.monitoring.workers import MetricFiles
from serving.state.reached import Reached

_Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
_LOG = logging.getLogger("tidemill")
_BEAT_S = 0.5
_METRICS_S = 2.0
_FIRST = 1  # the worker that keeps popularity on disk and checks the models often
_SELDOM_S = 5.0  # between checks of the models by the others


class WorkerView:
    """Implements `serving.monitoring.workers.Workers` for the worker of this number."""

    def __init__(self, number: int, board: Board, files: MetricFiles) -> None:
        self._number, self._board, self._files = number, board, files

    def problem(self) -> str:
        return self._board.problem()

    def metrics(self, own: bytes) -> bytes:
        return self._files.added_up(self._number, own)


class Worker:
    """What the process of a number does. `reached`: state to start from, this process's copy."""

    def __init__(
        self, process: Process, number: int, board: Board, files: MetricFiles, reached: Reached
    ) -> None:
        self._process, self._number, self._board = process, number, board
        self._files, self._reached = files, reached

    def run(self) -> int:
        """Answers until it is told to stop."""
        self._process.observe(with_port=False)  # the gateway's /metrics adds up all workers'
        app = create_app(self._dependencies())
        app.router.lifespan_context = self._watched(app.router.lifespan_context)
        gateway = self._process.settings.gateway
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                log_config=None,  # the process's own
                timeout_graceful_shutdown=3,  # open event streams must not hold up a stop
            )
        )
        server.run(sockets=[shared_socket(gateway.host, gateway.port)])
        getattr(trace.get_tracer_provider(), "shutdown", lambda: None)()  # sends the last spans
        return 0 if self._process.stop.is_set() else 1

    def _dependencies(self) -> GatewayDependencies:
        every_s = GatewayConfig.monitor_every_s if self._number == _FIRST else _SELDOM_S
        deps = serving_dependencies(self._process, monitor_every_s=every_s, reached=self._reached)
        return replace(
            deps,
            config=replace(deps.config, keeps_popularity=self._number == _FIRST),
            workers=WorkerView(self._number, self._board, self._files),
        )

    def _watched(self, lifespan: _Lifespan) -> _Lifespan:
        """The app's lifespan, with signs of life from its event loop and metrics from a thread."""

        @asynccontextmanager
        async def run(app: FastAPI) -> AsyncIterator[Any]:
            async with lifespan(app) as state:
                ended = threading.Event()
                args = (app.state.gateway, ended)
                threading.Thread(target=self._write_metrics, args=args, daemon=True).start()
                beating = asyncio.create_task(self._beat())
                try:
                    yield state
                finally:
                    beating.cancel()
                    ended.set()

        return run

    async def _beat(self) -> None:
        while True:
            self._board.beat(self._number)
            await asyncio.sleep(_BEAT_S)

    def _write_metrics(self, gateway: Gateway, ended: threading.Event) -> None:
        while not ended.wait(_METRICS_S):
            try:
                self._files.write(self._number, gateway.metrics_text())
            except OSError as error:
                _LOG.warning("the worker's metrics are not written: %s", error)


def shared_socket(host: str, port: int, *, alone: bool = False) -> socket.socket:
    """A socket bound to the address, with which others may be bound to it unless `alone`.

    The kernel divides connections among those that listen. Raises `OSError` if the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not alone:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((host, port))
    except OSError:
        found.close()
        raise
    return found
