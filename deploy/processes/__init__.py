"""The stack's own processes, one module each with a `run(process)` that returns the exit code.

Knows the names by which they are started, in the order of a stack's start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.settings import Settings

PROCESSES = {  # name -> module of this package
    "batcher": "ingest",
    "log-writer": "log_writer",
    "features": "features",
    "gateway": "gateway",
    "kafka-requests": "kafka_requests",
    "updater": "updater",  # started only where the settings schedule an update
}


def forks(name: str, settings: Settings) -> bool:
    """Whether the process forks workers, and so may have no thread of its own."""
    return name == "gateway" and settings.gateway.workers > 1


def kind_and_instance(name: str) -> tuple[str, str]:
    """("log-writer", "2") for "log-writer-2", ("log-writer", "") for "log-writer"."""
    if name in PROCESSES or "-" not in name:
        return name, ""
    kind, _, instance = name.rpartition("-")
    return kind, instance
