"""What an owner's declarations cost an event: the whole path with and without them, alternately.

Knows the path of `benchmarks.events` and the declarations of `benchmarks.events.declared`: two
signals, one of them with a decimal value, which together are 10 % of the events, and three
attributes of items. Does not know how a declaration is read.

Claim, set before any measurement: over five alternating pairs, the upper end of the 95 % interval
(Student's t on the logarithm of each pair's ratio) of CPU an event, with over without, is at most
1.15. In each run the users' counts of `shown` must equal the events sent.

`--quick` makes two small pairs and tests no bar.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from benchmarks.events import count_shown
from benchmarks.events.cluster import KEY, WHOLE_PATH, running_cluster
from benchmarks.events.source import Source
from benchmarks.events.throughput import EventPath, PathRun
from benchmarks.features.events import Stream
from benchmarks.report import Report
from deploy import wiring
from deploy.console import out
from streams.contract.clock import DAY_MS

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

BAR = 1.15


@dataclass(frozen=True)
class CostSize:
    """How large a run is."""

    pairs: int
    events: int
    timeout_s: float
    partitions: int = 4


FULL, QUICK = CostSize(5, 400_000, 300.0), CostSize(2, 40_000, 120.0)


def run(options: Options) -> Report:
    size = QUICK if options.quick else FULL
    report = Report("declared_cost", asdict(size))
    ratios = []
    for pair in range(size.pairs):
        order = (False, True) if pair % 2 else (True, False)
        runs = {declared: _measured(report, size, pair, declared) for declared in order}
        ratios.append(runs[True].cpu_us / runs[False].cpu_us)
        out.print(f"pair {pair + 1} of {size.pairs}: with over without {ratios[-1]:.3f}")
    low, high = interval(ratios)
    report.notes.append(f"ratio of CPU an event, 95 % interval: {low:.3f} to {high:.3f}")
    report.check(
        "CPU an event, with over without, upper end",
        high,
        f"<= {BAR}",
        None if options.quick else high <= BAR,
    )
    return report


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95 % interval of the geometric mean of two or more ratios."""
    logs = np.log(ratios)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    return float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def _measured(report: Report, size: CostSize, pair: int, declared: bool) -> PathRun:
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with (
        folder as name,
        running_cluster(Path(name), size.partitions, declared=declared) as cluster,
    ):
        source = Source(Stream(span_ms=DAY_MS), KEY, pair, declared=declared)
        path = EventPath(cluster, WHOLE_PATH, source, lambda _: None)
        path.start()
        run = path.run(size.events, size.timeout_s, lambda: None)
        found = count_shown(wiring.feature_store(cluster.settings))
    form = "declared" if declared else "shipped"
    report.add(pair=pair + 1, form=form, events_per_s=run.per_s, us_per_event=run.cpu_us)
    wrong = found - path.sent.shown
    if wrong:
        report.check(f"pair {pair + 1}, {form}: shown counted - sent", wrong, "0", False)
    return run
