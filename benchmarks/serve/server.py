"""One gateway behind uvicorn on loopback, and beside it a bare route that returns the same bytes.

Run as `python -m benchmarks.serve.server FOLDER END_MS PORT`; it prints "ready" once it answers.
Knows FastAPI and a gateway. Does not know what is measured.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import orjson
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from benchmarks.serve.gateway import Loaded, loaded
from serving.http.app import create_app


class BareRequest(BaseModel):
    """The fields of the measured requests."""

    user_id: str
    k: int = 10
    seed: int = 0
    video_id: str | None = None


def app_of(built: Loaded) -> FastAPI:
    """The gateway's app, with `POST /bare` and what it has used of the CPU."""
    app, kept = create_app(built.deps), dict[str, bytes]()

    @app.post("/bare/{surface}")
    def bare(surface: str, body: BareRequest) -> Response:
        del body
        return Response(kept.get(surface, b"{}"), media_type="application/json")

    @app.put("/bare/{surface}")
    def keep(surface: str, body: dict[str, object]) -> Response:
        kept[surface] = orjson.dumps(body)
        return Response(status_code=204)

    @app.get("/cpu")
    def cpu() -> Response:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return JSONResponse({"cpu_s": used.ru_utime + used.ru_stime})

    @app.post("/filled")
    def fill() -> Response:
        built.fill(app.state.gateway)
        return Response(status_code=204)

    return app


def main(arguments: list[str]) -> None:
    folder, end_ms, port = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    app = app_of(loaded(folder, end_ms))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1:])
