"""A stack of any checkout, started by that checkout's own command and environment.

Knows the folder, the command `up`, the home's `stack.json` and HTTP. Does not know what is
measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

START_S = 240.0
STOP_S = 60.0


@dataclass(frozen=True)
class RunningStack:
    """pid: the supervisor's. home: where it writes its files."""

    pid: int
    page: str
    home: Path


@contextmanager
def running_stack(
    checkout: Path, home: Path, environment: Mapping[str, str] | None = None
) -> Iterator[RunningStack]:
    """Starts the checkout's stack in `home`, with the embedded broker unless `environment` says
    otherwise, and stops it.

    Raises:
        RuntimeError: it ended or did not answer; the message ends with its output.
    """
    home.mkdir(parents=True, exist_ok=True)
    own = {"TIDEMILL_HOME": str(home), "TIDEMILL_BROKER": "embedded", "PYTHONPATH": str(checkout)}
    log = home / "up.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [str(checkout / ".venv" / "bin" / "python"), "-m", "deploy.cli.main", "up"],
            cwd=checkout,
            env=os.environ | own | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield RunningStack(child.pid, _await_page(child, home, log), home)
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()  # the kernel then ends what it has started
            child.wait()


def _await_page(child: subprocess.Popen[bytes], home: Path, log: Path) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until and child.poll() is None:
        with suppress(OSError, ValueError, KeyError, httpx.HTTPError):
            settings = json.loads((home / "stack.json").read_text())["settings"]
            page = f"http://127.0.0.1:{settings['gateway']['port']}"
            # The last line of `up` follows the last service's start.
            if "The page" in log.read_text() and httpx.get(f"{page}/healthz").status_code == 200:
                return page
        time.sleep(0.2)
    raise RuntimeError(f"the stack does not answer:\n{log.read_text()[-3000:]}")
