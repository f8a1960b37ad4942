"""The stack's own processes and their supervisor: whether each runs, and its clock.

Knows `services.json`, process states and the metric of a process's clock. Does not know what a
process does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from deploy import state
from deploy.doctor.finding import Finding, healthy, sick
from deploy.services.process import cause_first, log_tail
from deploy.settings import Settings

MAX_CLOCK_OFFSET_S = 2.0
_CLOCK = "tidemill_clock_timestamp_seconds"
_TIMEOUT_S = 3.0
_CAUSE_LINES = 3


def examine(home: Path, settings: Settings) -> Iterator[Finding]:
    """The supervisor, each process of `services.json`, and the clocks of those that answer."""
    if not state.home_is_locked(home):
        yield sick(
            "supervisor",
            "it was killed: nothing is started again that ends",
            "tidemill down, then tidemill up",
        )
    records = state.read_services(home)
    for record in records:
        yield examine_process(record, home)
    running = {record.name for record in records if _status(record.pid) == psutil.STATUS_RUNNING}
    yield from examine_clocks(settings, running)


def examine_process(record: state.ServiceRecord, home: Path) -> Finding:
    """One supervised process, as its record and the kernel describe it."""
    name, log = record.name, home / "logs" / f"{record.name}.log"
    status = _status(record.pid)
    if status == psutil.STATUS_STOPPED:
        return sick(
            name,
            f"process {record.pid} is stopped (SIGSTOP)",
            f"kill -CONT {record.pid}; kill -KILL {record.pid} has it started again",
        )
    if record.phase != "running" or status == psutil.STATUS_DEAD:
        cause = cause_first(log_tail(log, 200), _CAUSE_LINES) or "its log is empty"
        return sick(
            name,
            f"{_ended(record)}; last lines of {log}:\n{cause}",
            "it is started again with growing pauses: remove the cause that its log names",
        )
    restarts = f", restarted {record.restarts} times" if record.restarts else ""
    return healthy(name, f"process {record.pid} runs{restarts}")


def _ended(record: state.ServiceRecord) -> str:
    if record.phase == "running":
        return f"process {record.pid} has ended"
    phases = {
        "starting": "it is still starting",
        "waiting": "it ended and waits for its next start",
    }
    after = f" after {record.restarts} restarts" if record.restarts else ""
    return phases.get(record.phase, f"it is {record.phase}") + after


def _status(pid: int | None) -> str:
    """The kernel's state of a process: stopped, dead, or running for any other."""
    try:
        found = psutil.Process(pid).status() if pid is not None else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_DEAD)
    if found in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
        return str(psutil.STATUS_STOPPED)
    if found in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return str(psutil.STATUS_DEAD)
    return str(psutil.STATUS_RUNNING)


def examine_clocks(settings: Settings, running: Iterable[str]) -> Iterator[Finding]:
    """The clocks of running processes against this one's, by their metrics."""
    host = settings.telemetry.metrics_host
    offsets = {
        name: offset
        for name in sorted(running)
        if (port := settings.telemetry.metrics_ports.get(name))
        and (offset := clock_offset_s(f"http://{host}:{port}/metrics")) is not None
    }
    for name, offset in offsets.items():
        if abs(offset) > MAX_CLOCK_OFFSET_S:
            yield sick(
                f"clock of {name}",
                f"it is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}",
                "start NTP on its host; events of the future become dead letters (cause future)",
            )
    if offsets and max(map(abs, offsets.values())) <= MAX_CLOCK_OFFSET_S:
        yield healthy("clocks", f"{len(offsets)} processes within {MAX_CLOCK_OFFSET_S:g} s")


def clock_offset_s(url: str) -> float | None:
    """How far the clock behind a process's /metrics is ahead of this one's, less than the time of
    the request; None without an answer."""
    before = time.time()
    try:
        text = httpx.get(url, timeout=_TIMEOUT_S).text
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    after = time.time()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == _CLOCK:
                return sample.value - min(max(sample.value, before), after)
    return None
