"""Memory over time: a stack under the demo's load, its processes' resident memory each few seconds.

Knows the demo's world, stack and crowd. Does not know why a process grows.

Claim: after ten minutes of warm-up, the resident memory of every process of a stack grows by at
most 5 % an hour at the demo's load, broker included. The bar is checked by runs of at least half
an hour after the warm-up; shorter ones report.

Also reported: bytes that the log writer and the broker write to disk per event, while history is
loaded at full speed, under the crowd's load, and at a trickle of one event a second.

The full form takes 70 minutes, `--quick` about two. TIDEMILL_SOAK_MINUTES sets the minutes of
load (a seventh of them is the warm-up), TIDEMILL_BROKER the broker.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.__main__ import Options
from benchmarks.report import Report
from benchmarks.soak.load import LoadedStack, trickle
from benchmarks.soak.memory import MemorySamples, growth_per_hour
from deploy.console import out

FULL_MIN, QUICK_MIN = 70.0, 1.0
WARM_UP_SHARE = 1 / 7
SAMPLE_S = 5.0
TRICKLE_S, QUICK_TRICKLE_S = 60.0, 15.0
BAR_PER_HOUR = 0.05
BAR_NEEDS_S = 1_800.0  # a shorter run's slope is mostly noise


def run(options: Options) -> Report:
    """Starts a stack in a temporary home, loads it and samples it."""
    minutes = float(
        os.environ.get("TIDEMILL_SOAK_MINUTES") or (QUICK_MIN if options.quick else FULL_MIN)
    )
    with (
        tempfile.TemporaryDirectory(prefix="tidemill-soak-") as folder,
        LoadedStack(Path(folder), trained=not options.quick) as loaded,
    ):
        slow = trickle(loaded, QUICK_TRICKLE_S if options.quick else TRICKLE_S)
        at_speed = loaded.replay_history()
        samples = MemorySamples(loaded.stack)
        began = time.monotonic()
        with loaded.crowd() as under_load:
            while time.monotonic() - began < minutes * 60:
                samples.take(time.monotonic() - began)
                _print(samples)
                threading.Event().wait(SAMPLE_S)
        report = _report(loaded.broker, minutes * 60, samples)
        for name, written in (
            ("one event a second", slow),
            ("history at full speed", at_speed),
            ("the crowd's load", under_load),
        ):
            report.notes.append(f"{name}: {written}")
    return report


def _report(broker: str, seconds: float, samples: MemorySamples) -> Report:
    warm_s = seconds * WARM_UP_SHARE
    report = Report("soak", {"seconds": seconds, "broker": broker, "sample_s": SAMPLE_S})
    long_enough = seconds - warm_s >= BAR_NEEDS_S
    for name, series in samples.by_process.items():
        warm = [each for each in series if each[0] >= warm_s]
        if not warm:
            continue
        growth = growth_per_hour(warm)
        report.add(
            process=name,
            first_mb=series[0][1],
            warm_mb=warm[0][1],
            last_mb=warm[-1][1],
            growth_percent_per_hour=100 * growth,
        )
        ok = growth <= BAR_PER_HOUR if long_enough else None
        report.check(f"growth of {name}, % an hour", 100 * growth, "<= 5", ok)
    return report


def _print(samples: MemorySamples) -> None:
    """One line about every 30 s."""
    if samples.count % round(30 / SAMPLE_S) == 1:
        out.print(samples.line(), highlight=False)
