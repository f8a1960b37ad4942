"""CPU and memory of a stack's processes, read from outside.

Knows process trees, /proc and how a stack's processes are called. Does not know what they do, nor
which checkout they come from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SERVERS = ("broker", "store", "triton")  # other projects' programs
_PROGRAMS = {"valkey-server": "store", "redis-server": "store", "java": "broker"}
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """cpu_s: user and system, since the process began. pss_mb: its share of resident memory."""

    cpu_s: float
    pss_mb: float


def usage(root: int) -> dict[str, Usage]:
    """Usage by name of the process `root` (the supervisor) and of all that it has started.

    Processes of one name are added up; Triton's with its stubs'.
    """
    found: dict[str, Usage] = {}
    for process in _tree(root):
        with contextlib.suppress(psutil.Error, OSError):
            name = "supervisor" if process.pid == root else name_of(process.cmdline())
            times, before = process.cpu_times(), found.get(name, Usage(0.0, 0.0))
            cpu_s = before.cpu_s + times.user + times.system
            found[name] = Usage(cpu_s, before.pss_mb + pss_mb(process.pid))
    return found


def name_of(argv: Sequence[str]) -> str:
    """The service that a command line runs."""
    program = Path(argv[0].split()[0]).name if argv and argv[0] else ""  # Valkey adds its address
    if "deploy.process" in argv:
        instance = f"-{argv[argv.index('--instance') + 1]}" if "--instance" in argv else ""
        return argv[argv.index("deploy.process") + 1] + instance
    if program.startswith("triton"):
        return "triton"
    return _PROGRAMS.get(program, "broker" if "broker" in argv else program or "ended")


def pss_mb(pid: int) -> float:
    """Proportional set size: pages that several processes share count in parts."""
    found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    return int(found[1]) / 1024 if found else 0.0


def cores(
    before: Mapping[str, Usage], after: Mapping[str, Usage], seconds: float
) -> dict[str, float]:
    """Mean cores used by each process between two readings."""
    nothing = Usage(0.0, 0.0)
    return {
        name: max(now.cpu_s - before.get(name, nothing).cpu_s, 0.0) / seconds
        for name, now in after.items()
    }


def is_own(name: str) -> bool:
    return name not in SERVERS


def _tree(root: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(root)
        yield process
        yield from process.children(recursive=True)
