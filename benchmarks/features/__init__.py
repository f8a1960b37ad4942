"""The feature store's speed and its bars, set before any measurement.

1. Folds. User, video, author and query folds into Valkey, batches of 20,000 events over
   50,000 users and 20,000 items, rows cached: at most 5 µs of CPU an event for all four
   together, the store's own CPU included (the path's budget is 10 µs). Reported without a bar:
   batches of 100,000, which a lagging worker combines from queued deliveries.
2. Compared with Feast, 500 rows, median of 7 paired runs on one Valkey. *Typed*: Feast's `push`
   and `get_online_features(...).to_dict()` of 20 int64 fields; ours compares and sets the
   500 rows that hold 42 columns and a list, and reads them finalized. Bar: 4 times as fast
   each. *Blob*: Feast's `push` of the stored rows' bytes and our
   compare-and-set of the same bytes; `get_online_features` of the service that finalizes the
   same typed features from them and our read. Bar: 8 times as fast each. A row pushed by Feast
   must equal the row that we wrote, byte for byte.
3. Point-in-time join, 1M events x 200,000 labels, 5 % late, on event time and arrival
   time, every declared column: at most 2 times polars' bare `join_asof` of 20 int64
   columns on event time alone, frame for frame, in CPU seconds of all threads; under 1 GB
   above imports, inputs included; rows out equal rows in. Reported without a bar: the online
   reader's frame of the same values, whose lists are Python's, and Feast's default offline
   store on event time alone.
4. Backfill of 10M events in bounded memory: at most 1.5 times the peak of a tenth of them.
5. Spark local[2] over the log of a tenth of those events: every row of the four entities
   equals the local kernel's byte for byte. Skipped with the reason if Spark is not available.

`--quick` is ten to a hundred times smaller and does not test the bars.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.features.events import Stream, make_events
from benchmarks.features.offline import Backfilled, backfilled, feast_join, joined, log_folder
from benchmarks.features.online import BATCH_ROWS, COMBINED_ROWS, compare_with_feast, fold_costs
from benchmarks.features.spark import missing_requirement, spark_fold
from benchmarks.report import Report
from deploy.services import process
from deploy.services.process import Child
from deploy.services.valkey import Valkey

if TYPE_CHECKING:
    import pyarrow as pa

    from benchmarks.__main__ import Options

FOLD_CPU_US, TYPED, BLOB, JOIN, PEAK_MB, GROWTH = 5.0, 4.0, 8.0, 2.0, 1000.0, 1.5


@dataclass(frozen=True)
class FeaturesSize:
    """How large a run is."""

    fold_events: int
    join_events: int
    labels: int
    backfill_events: int
    runs: int
    seed: int = 0


FULL = FeaturesSize(1_000_000, 1_000_000, 200_000, 10_000_000, 7)
QUICK = FeaturesSize(100_000, 50_000, 10_000, 100_000, 3)


def run(options: Options) -> Report:
    return measure(QUICK if options.quick else FULL)


def measure(size: FeaturesSize) -> Report:
    """All parts at one size; each starts a store of its own."""
    report = Report("features", asdict(size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _folds(report, size, folder)
        _compare_with_feast(report, size, folder)
        _joins(report, size, folder)
        _backfills(report, size, folder)
        _on_spark(report, size, folder)
    return report


@contextmanager
def _valkey(folder: Path) -> Iterator[tuple[Valkey, Child]]:
    server = Valkey(folder)
    child = process.start(server, 20)
    try:
        yield server, child
    finally:
        child.stop()


def _folds(report: Report, size: FeaturesSize, folder: Path) -> None:
    events = make_events(Stream(), size.fold_events, size.seed)
    total = _folded(report, folder, events, BATCH_ROWS, "fold")
    _folded(report, folder, events, min(COMBINED_ROWS, size.fold_events // 2), "combined fold")
    report.check("four folds, µs CPU/event", total, f"<= {FOLD_CPU_US:g}", total <= FOLD_CPU_US)


def _folded(report: Report, folder: Path, events: pa.Table, batch_rows: int, name: str) -> float:
    """µs of CPU an event for all four folds."""
    with _valkey(folder) as (server, child):
        costs = fold_costs(server.address, child.pid, events, batch_rows)
    for cost in costs:
        what = f"{cost.events_per_s:,.0f} events/s, {cost.rows_per_event:.2f} rows an event"
        _row(report, f"{name} {cost.entity}", cost.client_us, cost.server_us, "µs/event", what)
    return sum(cost.client_us + cost.server_us for cost in costs)


def _row(
    report: Report, what: str, ours: float, other: float | str, unit: str, note: str = ""
) -> None:
    report.add(what=what, ours=ours, beside=other, unit=unit, note=note)


def _compare_with_feast(report: Report, size: FeaturesSize, folder: Path) -> None:
    with _valkey(folder) as (server, _):
        pairs, equal = compare_with_feast(server.address, folder, size.runs)
    for pair in pairs:
        bar = BLOB if "blob" in pair.name else TYPED
        ours, feasts = median(pair.ours_s) * 1000, median(pair.feast_s) * 1000
        _row(report, pair.name, ours, feasts, "ms", f"Feast/ours {pair.ratio:.1f}")
        report.check(f"{pair.name}, Feast/ours", pair.ratio, f">= {bar:g}", pair.ratio >= bar)
    report.check("pushed bytes equal ours", float(equal), "1", equal)


def _joins(report: Report, size: FeaturesSize, folder: Path) -> None:
    for entity in ("user", "video"):
        join = joined(folder, entity, size.join_events, size.labels, min(size.runs, 5))
        ours, bare = median(join.ours_s), median(join.bare_s)
        note = f"{join.rows:,} rows of {join.labels:,} labels, {join.peak_mb:,.0f} MB"
        _row(report, f"point in time {entity}", ours, bare, "CPU s", note)
        read, times = median(join.reader_s), f"ours/bare {join.reader_ratio:.1f}"
        _row(report, f"point in time {entity}, as the reader's frame", read, bare, "CPU s", times)
        name = f"join {entity}, ours/bare asof"
        report.check(name, join.ratio, f"<= {JOIN:g}", join.ratio <= JOIN)
        small = join.peak_mb < PEAK_MB
        report.check(f"join {entity}, MB above imports", join.peak_mb, f"< {PEAK_MB:g}", small)
        whole = join.rows == join.labels
        report.check(f"join {entity}, rows out", join.rows, f"{join.labels}", whole)
    feasts = feast_join(folder, size.join_events, size.labels)
    note = f"{feasts.rows:,} rows of {size.labels:,} labels, {feasts.peak_mb:,.0f} MB"
    _row(report, "point in time user, Feast's default", feasts.seconds, "", "s", note)


def _backfills(report: Report, size: FeaturesSize, folder: Path) -> None:
    tenth, whole = (_backfill(report, n, folder) for n in _tenth_and_whole(size))
    growth = whole.peak_mb / tenth.peak_mb
    report.check("backfill peak, whole/tenth", growth, f"<= {GROWTH:g}", growth <= GROWTH)


def _tenth_and_whole(size: FeaturesSize) -> tuple[int, int]:
    return size.backfill_events // 10, size.backfill_events


def _backfill(report: Report, events: int, folder: Path) -> Backfilled:
    with _valkey(folder) as (server, _):
        done = backfilled(folder, server.address, events)
    note = f"{done.events / done.seconds:,.0f} events/s, {done.cpu_us:.1f} µs CPU/event"
    _row(report, f"backfill {events:,} events", done.seconds, done.peak_mb, "s | peak MB", note)
    return done


def _on_spark(report: Report, size: FeaturesSize, folder: Path) -> None:
    """On the log of the smaller backfill."""
    if reason := missing_requirement():
        report.notes.append(f"Spark was skipped: {reason}")
        return
    done = spark_fold(log_folder(folder, _tenth_and_whole(size)[0]))
    note = f"{done.rows:,} rows of {done.events:,} events, {done.differ} differ"
    _row(report, "fold on Spark local[2]", done.spark_s, done.local_s, "s | s here", note)
    report.check("rows on Spark that differ", done.differ, "0", done.differ == 0)
