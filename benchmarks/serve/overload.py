"""More requests than can be answered: what those that are accepted wait, and what the others get.

Knows rates and deadlines. Does not know surfaces. Requests are sent at a rate, and a latency counts
from when the request was due: a caller that waits for its last reply would not notice a queue.
"""

from __future__ import annotations

import numpy as np

from benchmarks.report import Report
from benchmarks.serve.load import Body, OpenLoad, measure_open
from serving.http.capacity import DEADLINE_S

BAR = 1.5  # p99 of accepted requests at twice the full rate, over that at the full rate
_PATH = "/v1/feed"
_FIRST, _GROWTH, _STEPS = 0.7, 1.07, 20  # of what callers that wait got; then ever more


def overload(
    report: Report, port: int, body: Body, closed_per_s: float, seconds: float, *, quick: bool
) -> None:
    """Finds the highest rate that is answered within the deadline, and sends twice as many."""
    full: OpenLoad | None = None
    for step in range(_STEPS):
        found = measure_open(port, _PATH, body, closed_per_s * _FIRST * _GROWTH**step, seconds)
        _row(report, found)
        if not _in_time(found):
            break
        full = found
    if full is None:
        report.notes.append(f"open loop: {closed_per_s * _FIRST:.0f}/s are not answered in time")
        return
    twice = measure_open(port, _PATH, body, 2 * full.per_s, seconds)
    _row(report, twice)
    ratio = _p99(twice.accepted_ms) / _p99(full.accepted_ms)
    ok = None if quick else ratio <= BAR and not twice.failed
    report.check(
        "open loop at 2x the full rate: p99 of accepted / at full rate", ratio, f"<= {BAR}", ok
    )
    lasted = twice.accepted_ms[len(twice.accepted_ms) // 10 :]
    report.check(
        "open loop at 2x: the same without the first tenth, in which the queue fills",
        _p99(lasted) / _p99(full.accepted_ms),
        "none",
        None,
    )
    report.check(
        "open loop at 2x: accepted per s / full rate",
        twice.accepted_per_s / full.per_s,
        "none",
        None,
    )
    report.check("open loop at 2x: p99 of a 429, ms", _p99(twice.rejected_ms), "none", None)


def _in_time(found: OpenLoad) -> bool:
    """Every request was answered, nearly all before the deadline."""
    rejected = found.failed + len(found.rejected_ms)
    return not rejected and _p99(found.accepted_ms) <= DEADLINE_S * 1e3


def _p99(latency_ms: np.ndarray) -> float:
    return float(np.percentile(latency_ms, 99)) if len(latency_ms) else float("nan")


def _row(report: Report, found: OpenLoad) -> None:
    accepted = found.accepted_ms
    report.add(
        route=_PATH,
        workers=1,
        callers=f"open, {found.per_s:.0f}/s",
        per_s=found.accepted_per_s,
        p50_ms=float(np.percentile(accepted, 50)) if len(accepted) else float("nan"),
        p99_ms=_p99(accepted),
        cpu_ms=float("nan"),
        failed=found.failed + len(found.rejected_ms),
    )
