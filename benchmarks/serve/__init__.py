"""From a route to a slate: CPU by stage, and requests per second beside a bare route.

MovieLens-100K as the stack replays it, in one process with bus and store in memory and the trained
ranker in process; the two generating models are the shipped fakes, since their time is the model
server's. Feeds ask for 10 items without a request id, each for another user and seed. Callers are
in this process, the gateway is in its own, and both share the machine's cores.

Claims and bars, set before any measurement:

1. Feeds with 16 callers: at least 15 times the requests per second of commit 3de34bd, which was
   measured by hand in its own checkout and environment (`benchmarks/serve/baseline.py`, under the
   same callers). `BASELINE_PER_S` was measured on 2 cores before this benchmark was written, and
   not again on idle ones: on another machine, measure it anew.
2. Reported: CPU ms of a feed by stage, one after the other in process; requests per second and CPU
   ms per request with 1 and 16 callers, for each surface and for a FastAPI route beside it that
   reads the same body and returns the same bytes.

`--quick`: a small ranker and 3 s per measurement; bars are reported, not checked.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import psutil

from benchmarks.report import Report
from benchmarks.serve.gateway import Loaded, loaded, now_ms, train
from benchmarks.serve.load import Body, ask, measure
from benchmarks.serve.overload import overload
from deploy.services.process import free_port
from deploy.simulation.movielens import DataUnavailable
from serving.gateway import Gateway
from serving.http.api.json import json_bytes
from serving.surfaces.feed import FeedRequest

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

CALLERS = (1, 16)
WORKERS = 2
BAR, BASELINE_PER_S = 15.0, 20.0  # the second: commit 3de34bd, 16 callers, 2 cores
FEEDS, WARM = 300, 50  # of the measurement by stage
START_S = 180.0


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    seconds, interactions = (3.0, 1_500) if options.quick else (15.0, 12_000)
    report = Report("serve", {"seconds": seconds, "interactions": interactions, "feeds": FEEDS})
    with tempfile.TemporaryDirectory() as name:
        folder, end_ms = Path(name), now_ms()
        try:
            train(folder, end_ms, interactions)
            built = loaded(folder, end_ms)
        except DataUnavailable as reason:
            report.notes.append(f"left out: {reason}")
            return report
        _by_stage(report, built)
        with _server(folder, end_ms) as served:
            _through_http(report, built, served, seconds, quick=options.quick)
        with _server(folder, end_ms, WORKERS) as served:
            _with_workers(report, built, served, seconds)
    return report


def _by_stage(report: Report, built: Loaded) -> None:
    """Median ms of each stage, and the CPU of a whole feed, one after the other."""
    gateway = Gateway(built.deps)
    gateway.start()
    try:
        built.fill(gateway)
        stages: dict[str, list[float]] = {}
        used, scored = 0.0, []
        for number in range(WARM + FEEDS):
            before = time.process_time()
            user = built.users[number % len(built.users)]
            slate = gateway.surfaces.answer(FeedRequest(user_id=user, k=10, seed=number))
            json_bytes(gateway.surfaces.reply(slate, gateway.impression_key))
            gateway.metrics.observe_reply(slate, 0.0)
            if number < WARM:
                continue
            used += time.process_time() - before
            scored.append(slate.candidate_count)
            for stage, took_ms in slate.stage_ms.items():
                stages.setdefault(stage, []).append(took_ms)
    finally:
        gateway.stop()
    medians = {stage: float(np.median(took)) for stage, took in stages.items()}
    text = ", ".join(f"{stage} {took:.2f}" for stage, took in medians.items())
    report.notes.append(f"ms by stage, median of {FEEDS} feeds: {text}")
    report.check("candidates of a feed, mean", float(np.mean(scored)), "none", None)
    report.check("CPU of a feed in process, ms", used / FEEDS * 1e3, "none", None)


def _bodies(built: Loaded) -> dict[str, Body]:
    users, items = built.users, built.item_ids

    def of(surface: str) -> Body:
        def body(number: int) -> dict[str, Any]:
            found: dict[str, Any] = {"user_id": users[number % len(users)], "seed": number}
            return found | (
                {"video_id": items[number % len(items)]} if surface == "queries" else {}
            )

        return body

    return {surface: of(surface) for surface in ("feed", "queries", "reactivation")}


def _through_http(
    report: Report, built: Loaded, served: _Served, seconds: float, *, quick: bool
) -> None:
    port = served.port
    ask(port, "POST /filled")
    bodies = _bodies(built)
    for surface, body in bodies.items():
        reply = ask(port, f"POST /v1/{surface}", orjson.dumps(body(0)))
        ask(port, f"PUT /bare/{surface}", reply)
        measure(port, f"/v1/{surface}", body, 4, min(seconds, 2.0))  # warm
    found = {
        (path, callers): _row(report, path, body, served, callers, seconds)
        for surface, body in bodies.items()
        for path in (f"/v1/{surface}", f"/bare/{surface}")
        for callers in CALLERS
    }
    factor = found["/v1/feed", CALLERS[-1]] / BASELINE_PER_S
    ok = None if quick else factor >= BAR
    report.check("feeds per second with 16 callers / commit 3de34bd", factor, f">= {BAR:g}", ok)
    closed = found["/v1/feed", CALLERS[-1]]
    overload(report, port, bodies["feed"], closed, seconds, quick=quick)


def _with_workers(report: Report, built: Loaded, served: _Served, seconds: float) -> None:
    body = _bodies(built)["feed"]
    measure(served.port, "/v1/feed", body, 16, min(seconds, 2.0))  # warm
    for callers in CALLERS:
        _row(report, "/v1/feed", body, served, callers, seconds)


def _row(
    report: Report, path: str, body: Body, served: _Served, callers: int, seconds: float
) -> float:
    before = served.cpu_s()
    load = measure(served.port, path, body, callers, seconds)
    cpu_ms = (served.cpu_s() - before) * 1e3 / max(len(load.latency_ms), 1)
    p50, p99 = np.percentile(load.latency_ms, (50, 99)) if len(load.latency_ms) else (np.nan,) * 2
    report.add(
        route=path,
        workers=served.workers,
        callers=callers,
        per_s=load.per_s,
        p50_ms=float(p50),
        p99_ms=float(p99),
        cpu_ms=cpu_ms,
        failed=load.failed,
    )
    return load.per_s


@dataclass(frozen=True)
class _Served:
    """A gateway that answers on a port: one process, or a parent and its workers."""

    port: int
    process: psutil.Process
    workers: int

    def cpu_s(self) -> float:
        each = [self.process, *self.process.children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in each)


@contextmanager
def _server(folder: Path, end_ms: int, workers: int = 1) -> Iterator[_Served]:
    """The gateway in its own process or processes, answering on the port."""
    port = free_port()
    command: Sequence[str] = [sys.executable, "-m", "benchmarks.serve.server"]
    child = subprocess.Popen([*command, str(folder), str(end_ms), str(port), str(workers)])
    try:
        _wait_until_it_answers(port, child)
        yield _Served(port, psutil.Process(child.pid), workers)
    finally:
        child.terminate()
        child.wait(30)


def _wait_until_it_answers(port: int, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if child.poll() is not None:
            raise RuntimeError(f"the gateway ended with {child.returncode} before it answered")
        try:
            ask(port, "GET /v1/surfaces")
            return
        except (OSError, RuntimeError):
            time.sleep(0.2)
    raise RuntimeError(f"the gateway did not answer within {START_S:g} s")
