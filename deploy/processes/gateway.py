"""The process `gateway`: recommendations, events and the console over HTTP.

Knows uvicorn and its limits. Does not know the routes (`serving.http`).
"""

from __future__ import annotations

import uvicorn

from deploy.processes.lifecycle import Process
from deploy.processes.serving_dependencies import serving_dependencies
from serving.http.app import create_app


def run(process: Process) -> int:
    """Serves HTTP until stopped."""
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
