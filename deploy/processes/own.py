"""The stack's own processes as services: `python -m deploy.process NAME`.

Knows how to start one and where it marks itself as ready. Does not know what it does
(`deploy.processes`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy import state
from deploy.processes import kind_and_instance
from deploy.services.cache import ROOT
from deploy.services.process import Command
from deploy.services.triton import answers_http

# glibc gives each of a process's 30 to 50 threads an arena of its own, which keeps what was freed in
# it: two are enough, and what is free at the end of one is returned at once.
_FEW_ARENAS = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
# The log writer merges whole hours of events now and then. With low thresholds, glibc's allocator
# returns such a peak to the system; Arrow's own (mimalloc) keeps most of it: a merge of 128,000 events
# left 60 MB instead of 130 MB.
MEMORY = {
    "log-writer": {
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_MMAP_THRESHOLD_": str(256 << 10),
    },
}


@dataclass(frozen=True)
class OwnProcess:
    """One of `deploy.processes.PROCESSES`, reading the settings that the stack wrote to `home`.
    An instance follows the name behind a dash."""

    name: str
    home: Path
    url: str = ""  # an HTTP address that answers once the process is ready; "": it has none
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> Command:
        state.unmark_ready(self.home, self.name)
        kind, instance = kind_and_instance(self.name)
        argv = [sys.executable, "-m", "deploy.process", kind, "--home", str(self.home)]
        return Command(
            argv=[*argv, "--instance", instance] if instance else argv,
            log_path=self.home / "logs" / f"{self.name}.log",
            env={"PYTHONUNBUFFERED": "1", **_FEW_ARENAS, **MEMORY.get(kind, {}), **self.env},
            cwd=ROOT,
        )

    def ready(self) -> bool:
        marked = state.is_ready(self.home, self.name)
        return marked and (not self.url or answers_http(self.url))
