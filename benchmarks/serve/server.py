"""One gateway behind uvicorn on loopback, and beside it a bare route that returns the same bytes.

Run as `python -m benchmarks.serve.server FOLDER END_MS PORT WORKERS`. Several workers have a store
and a bus in memory of their own each, so what one is told the others do not learn: each is filled
before it answers. Knows FastAPI and a gateway. Does not know what is measured.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel

from benchmarks.serve.gateway import Loaded, loaded
from deploy.processes.workers.board import Board
from deploy.processes.workers.pool import WorkerPool
from deploy.processes.workers.worker import shared_socket
from serving.http.app import create_app


class BareRequest(BaseModel):
    """The fields of the measured requests."""

    user_id: str
    k: int = 10
    seed: int = 0
    video_id: str | None = None


def app_of(built: Loaded) -> FastAPI:
    """The gateway's app, with `POST /bare`."""
    app, kept = create_app(built.deps), dict[str, bytes]()

    @app.post("/bare/{surface}")
    def bare(surface: str, body: BareRequest) -> Response:
        del body
        return Response(kept.get(surface, b"{}"), media_type="application/json")

    @app.put("/bare/{surface}")
    def keep(surface: str, body: dict[str, object]) -> Response:
        kept[surface] = orjson.dumps(body)
        return Response(status_code=204)

    @app.post("/filled")
    def fill() -> Response:
        built.fill(app.state.gateway)
        return Response(status_code=204)

    return app


def main(arguments: list[str]) -> None:
    folder, end_ms, port, workers = Path(arguments[0]), *map(int, arguments[1:4])
    if workers == 1:
        app = app_of(loaded(folder, end_ms))
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
        return
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    pool = WorkerPool(workers, lambda number: _work(pool.board, number, folder, end_ms, port), stop)
    pool.run()


def _work(board: Board, number: int, folder: Path, end_ms: int, port: int) -> int:
    built = loaded(folder, end_ms)
    app = app_of(built)
    started = app.router.lifespan_context

    @asynccontextmanager
    async def filled(app: FastAPI) -> AsyncIterator[Any]:
        async with started(app) as state:
            built.fill(app.state.gateway)
            beating = asyncio.create_task(_beat(board, number))
            yield state
            beating.cancel()

    app.router.lifespan_context = filled
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[shared_socket("127.0.0.1", port)])
    return 0


async def _beat(board: Board, number: int) -> None:
    while True:
        board.beat(number)
        await asyncio.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1:])
