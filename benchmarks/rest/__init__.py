"""What a stack uses at rest: CPU and memory of every process, idle and with 35 events per second.

A stack as `tidemill up` starts it (embedded broker, Triton with no model but its self-test, one
gateway worker), in an empty home. `settle_s` after Feast's registry was written its processes are read over 25 s without
requests, then over 25 s in which one client posts 35 events per second over HTTP (200 users,
500 items, plays and likes). Then each of 40 probes sends a like and asks for its user until it is
counted: the freshness that was had at that cost. With `--baseline DIR` the stack of that checkout,
run by its own `.venv`, is read too, and the two alternate, one stack at a time.

Own processes are all but broker, store and Triton, with the supervisor, and are printed one by
one; memory is PSS.

Claims and bars, set before any measurement, checked with `--baseline` only:

1. Own processes, idle: at most 0.5 times the baseline's CPU, and at most 0.5 times its PSS.
2. The same with 35 events per second.
3. Reported: seconds from an event sent to its row counted, p50 and p99, over the baseline's.

`--quick`: one round of 5 s each; bars are reported, not checked.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np

from benchmarks.report import Report
from benchmarks.rest.checkout import RunningStack, running_stack
from benchmarks.rest.usage import cores, is_own, usage

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

HERE = Path(__file__).resolve().parents[2]
NOW, BASELINE = "this checkout", "baseline"
PER_S, USERS, ITEMS, PROBES = 35, 200, 500, 40
PHASES = ("idle", f"{PER_S} events/s")
PROBE_S, REGISTRY_S = 20.0, 120.0
BAR = 0.5


@dataclass
class Readings:
    """All readings of one checkout's stacks, one list entry for each round."""

    cores: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    pss_mb: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    fresh_s: list[float] = field(default_factory=list)

    def own(self, what: dict[tuple[str, str], list[float]], phase: str) -> float:
        """The sum over own processes of their means."""
        return sum(
            float(np.mean(v)) for (p, name), v in what.items() if p == phase and is_own(name)
        )


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    rounds, seconds, settle_s = (1, 5.0, 5.0) if options.quick else (2, 25.0, 20.0)
    given = {"rounds": rounds, "seconds": seconds, "settle_s": settle_s, "per_s": PER_S}
    report = Report("rest", given)
    checkouts = {NOW: HERE} | ({BASELINE: options.baseline.resolve()} if options.baseline else {})
    readings = {name: Readings() for name in checkouts}
    for number in range(rounds):
        order = list(checkouts.items())
        for name, folder in order if number % 2 == 0 else reversed(order):
            with (
                tempfile.TemporaryDirectory(prefix="tidemill-rest-") as home,
                running_stack(folder, Path(home)) as stack,
            ):
                _read(stack, readings[name], seconds, settle_s)
    for name, found in readings.items():
        _add_rows(report, name, found)
    _check(report, readings, quick=options.quick)
    return report


def _read(stack: RunningStack, readings: Readings, seconds: float, settle_s: float) -> None:
    _await_registry(stack.home)
    time.sleep(settle_s)
    with httpx.Client(base_url=stack.page, timeout=10.0, trust_env=False) as http:
        for phase, work in zip(PHASES, (time.sleep, lambda s: _send(http, s)), strict=True):
            _measure(stack.pid, phase, work, readings, seconds)
        readings.fresh_s += [_freshness_s(http, number) for number in range(PROBES)]


def _await_registry(home: Path) -> None:
    """Feast's registry is written after the start, which takes seconds of CPU, once."""
    until = time.monotonic() + REGISTRY_S
    while not (home / "registry.db").exists() and time.monotonic() < until:
        time.sleep(0.5)


def _measure(
    pid: int, phase: str, work: Callable[[float], None], readings: Readings, seconds: float
) -> None:
    before, began = usage(pid), time.monotonic()
    work(seconds)
    after, took_s = usage(pid), time.monotonic() - began
    for name, used in cores(before, after, took_s).items():
        readings.cores[phase, name].append(used)
        readings.pss_mb[phase, name].append(after[name].pss_mb)


def _event(number: int, user: str, kind: str) -> dict[str, object]:
    found: dict[str, object] = {
        "event_id": f"rest-{time.time_ns()}-{number}",
        "user_id": user,
        "kind": kind,
        "video_id": f"item-{number % ITEMS}",
        "event_time_ms": time.time_ns() // 1_000_000,
    }
    return found | ({"dwell_ms": 9_000} if kind == "play" else {})


def _send(http: httpx.Client, seconds: float) -> None:
    """`PER_S` events a second, one request each, at evenly spaced times."""
    began = time.monotonic()
    for number in range(round(PER_S * seconds)):
        time.sleep(max(began + number / PER_S - time.monotonic(), 0.0))
        event = _event(number, f"user-{number % USERS}", "like" if number % 5 == 0 else "play")
        http.post("/v1/events", json=event).raise_for_status()


def _freshness_s(http: httpx.Client, number: int) -> float:
    """Seconds from sending a like until the user's row counts it; inf: not within `PROBE_S`."""
    user = f"probe-{time.time_ns()}"
    began = time.monotonic()
    http.post("/v1/events", json=_event(number, user, "like")).raise_for_status()
    while time.monotonic() - began < PROBE_S:
        features = http.get(f"/v1/users/{user}").json().get("features") or {}
        if features.get("like_count_all", 0) >= 1:
            return time.monotonic() - began
        time.sleep(0.005)
    return float("inf")


def _add_rows(report: Report, checkout: str, found: Readings) -> None:
    names = sorted({name for _, name in found.cores}, key=lambda name: (not is_own(name), name))

    def row(process: str, members: Sequence[str]) -> None:
        values: dict[str, float] = {}
        for phase in PHASES:
            for unit, what in (("cores", found.cores), ("pss_mb", found.pss_mb)):
                parts = [float(np.mean(what[phase, each])) for each in members if what[phase, each]]
                values[f"{unit}, {phase}"] = sum(parts)
        report.add(checkout=checkout, process=process, **values)

    for name in names:
        row(name, [name])
    row("own processes together", [name for name in names if is_own(name)])


def _check(report: Report, readings: dict[str, Readings], *, quick: bool) -> None:
    now, base = readings[NOW], readings.get(BASELINE)
    for phase in PHASES:
        for unit in ("cores", "pss_mb"):
            value = now.own(getattr(now, unit), phase)
            report.check(f"own processes, {unit}, {phase}", value, "none", None)
            if base is not None:
                ratio = value / base.own(getattr(base, unit), phase)
                ok = None if quick else ratio <= BAR
                report.check(f"own processes, {unit}, {phase} / baseline", ratio, f"<= {BAR}", ok)
    for share in (50, 99):
        value = float(np.percentile(now.fresh_s, share))
        report.check(f"event sent to row counted, p{share}, s", value, "none", None)
        if base is not None:
            ratio = value / float(np.percentile(base.fresh_s, share))
            report.check(f"event sent to row counted, p{share} / baseline", ratio, "none", None)
