"""The stack's own processes: `python -m deploy.process NAME`, ready when they say so.

Knows how to start one and where it says that it is set up. Does not know what it
does (`deploy.process`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy import state
from deploy.services.cache import ROOT
from deploy.services.process import Command
from deploy.services.triton import answers_http


@dataclass(frozen=True)
class OwnProcess:
    """One of `deploy.process.PROCESSES`, reading the settings that the stack wrote to `home`.
    Of several of a kind, the name says which behind a dash."""

    name: str
    home: Path
    url: str = ""  # where it answers over HTTP; "" for one that has no door
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> Command:
        state.unmark_ready(self.home, self.name)
        kind, _, instance = self.name.partition("-")
        argv = [sys.executable, "-m", "deploy.process", kind, "--home", str(self.home)]
        return Command(
            argv=[*argv, "--instance", instance] if instance else argv,
            log_path=self.home / "logs" / f"{self.name}.log",
            env={"PYTHONUNBUFFERED": "1", **self.env},
            cwd=ROOT,
        )

    def ready(self) -> bool:
        said_so = state.is_ready(self.home, self.name)
        return said_so and (not self.url or answers_http(self.url))
