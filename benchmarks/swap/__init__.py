"""Hot swaps and faults on a running stack under load: no request fails.

A real stack (Triton, Valkey, the broker of the settings, one gateway worker) with MovieLens-100K
replayed and its ranker trained and live; the other surfaces' models are left out. Feeds of 10 items
are sent at 10 a second from start to end, and latency counts from the intended time of sending.
Each swap seals the same weights as a new version, promotes it (load beside the live one, canary,
switch, unload of the oldest) and rests for 3 s. Then one rollback. Then every part is restarted in
good order, which gives its cold load, and struck: kill -9 and kill -STOP of the ranker's process in
Triton (stub), Triton, the store, the broker and the gateway.

Claims and bars, set before any measurement:

1. 20 swaps and a rollback: 0 failed requests.
2. p99 of requests sent while a release is being loaded: at most 3 times that of those sent in the
   rests between (the two alternate).
3. PSS of Triton and gateway together after the last five swaps: within 5 % of after the first five.
4. Each fault: no request fails, those of the gateway excepted, which has one worker here: its
   are counted. Fallbacks are counted.
5. Each fault: from the signal to the last fallback (and the part's process running again) at most
   2 s + 1.5 times the same run's cold load of that part, measured in the same way.

`--quick`: 4 swaps, faults of stub and Triton only; bars are reported, not checked.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.report import Report
from benchmarks.rest.usage import usage
from benchmarks.swap.faults import PARTS, SIGNALS, Outcome, cold_load, strike
from benchmarks.swap.load import Reply, SteadyLoad, causes, failed, p99_ms, with_fallback
from benchmarks.swap.ranker_stack import RankerStack, await_true
from deploy.console import out
from deploy.simulation.movielens import DataUnavailable

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

PER_S = 10.0
REST_S, WARM_S = 3.0, 20.0
FIRST = LAST = 5  # swaps whose memory is compared
P99_BAR, MEMORY_BAR, SLACK_S, COLD_BAR = 3.0, 0.05, 2.0, 1.5


def run(options: Options) -> Report:
    """See the module's docstring for claims and bars."""
    swaps, interactions = (4, 1_500) if options.quick else (20, 12_000)
    config = {"swaps": swaps, "interactions": interactions, "per_s": PER_S, "rest_s": REST_S}
    report = Report("swap", config)
    with tempfile.TemporaryDirectory(prefix="tidemill-swap-") as home:
        try:
            with (
                RankerStack(Path(home), interactions) as stack,
                SteadyLoad(stack.settings.gateway.port, stack.users, PER_S) as load,
            ):
                report.notes.append(f"broker: {stack.settings.broker.kind}")
                _await_clean(load)
                _swaps(report, stack, load, swaps, quick=options.quick)
                _faults(report, stack, load, PARTS[:2] if options.quick else PARTS, options.quick)
        except DataUnavailable as reason:
            report.notes.append(f"left out: {reason}")
    return report


def _await_clean(load: SteadyLoad) -> None:
    """Until the last seconds' replies came from the models."""
    recent = round(PER_S * 3)

    def clean() -> bool:
        replies = load.replies[-recent:]
        return len(replies) == recent and all(reply.clean for reply in replies)

    await_true(clean, "feeds without a fallback")
    time.sleep(WARM_S)


def _swaps(
    report: Report, stack: RankerStack, load: SteadyLoad, count: int, *, quick: bool
) -> None:
    during: list[Reply] = []
    between: list[Reply] = []
    memory, seconds = [], []

    def measured(act: Callable[[], None]) -> None:
        began = time.monotonic()
        act()
        ended = time.monotonic()
        time.sleep(REST_S)
        during.extend(load.between(began, ended))
        between.extend(load.between(ended, time.monotonic() - 1.0))
        seconds.append(ended - began)

    for number in range(count):
        measured(stack.swap)
        found = usage(os.getpid())
        memory.append(found["triton"].pss_mb + found["gateway"].pss_mb)
        out.print(f"swap {number + 1}: {seconds[-1]:.1f} s, {memory[-1]:.0f} MB", style="dim")
    measured(stack.rollback)
    everything = [*during, *between]
    report.notes.append(
        f"{count} swaps and a rollback: {np.median(seconds):.1f} s each (median), "
        f"{len(everything)} feeds, {with_fallback(everything)} of them with a fallback; p99 while "
        f"loading {p99_ms(during):.0f} ms, between {p99_ms(between):.0f} ms; PSS of Triton and "
        f"gateway after each swap, MB: {', '.join(f'{size:.0f}' for size in memory)}"
    )
    lost, slower = failed(everything), p99_ms(during) / p99_ms(between)
    report.check("failed requests, swaps and rollback", lost, "= 0", None if quick else lost == 0)
    ok = None if quick else slower <= P99_BAR
    report.check("p99 while loading / between", slower, f"<= {P99_BAR:g}", ok)
    first, last = float(np.mean(memory[:FIRST])), float(np.mean(memory[-LAST:]))
    growth = last / first - 1
    ok = None if quick else abs(growth) <= MEMORY_BAR
    report.check("memory, last five swaps / first five - 1", growth, f"within {MEMORY_BAR}", ok)


def _faults(
    report: Report, stack: RankerStack, load: SteadyLoad, parts: tuple[str, ...], quick: bool
) -> None:
    lost, limits_s = 0, {}
    for part in parts:
        cold = cold_load(stack, load, part)
        limits_s[part] = SLACK_S + COLD_BAR * cold.back_s
        _row(report, "restart", cold, limits_s[part])
    # One fault of all parts after the other: a part that fails twice within 30 s is restarted after
    # a longer pause, which is not what is measured.
    for name, number in SIGNALS.items():
        for part, limit_s in limits_s.items():
            found = strike(stack, load, part, number)
            _row(report, name, found, limit_s)
            lost += 0 if part == "gateway" else found.failed
            ok = None if quick else found.back_s <= limit_s
            bar = f"<= {limit_s:.1f}"
            report.check(f"{name} of {part}: s until the model serves again", found.back_s, bar, ok)
    report.check("failed requests, faults", lost, "= 0", None if quick else lost == 0)


def _row(report: Report, fault: str, found: Outcome, limit_s: float) -> None:
    row: dict[str, object] = {
        "part": found.part,
        "fault": fault,
        "back_s": found.back_s,
        "limit_s": limit_s,
        "feeds": len(found.replies),
        "fallbacks": found.fallbacks,
        "failed": found.failed,
        "causes": causes(found.replies),
        "longest_ms": 1e3 * max((reply.took_s for reply in found.replies), default=0.0),
    }
    report.add(**row)
    out.print(str(row), style="dim", highlight=False)
