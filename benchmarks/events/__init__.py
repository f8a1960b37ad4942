"""The event path: JSON on Apache Kafka 4.4 to rows in Valkey, all processes on one machine.

The bars, set before any measurement, for a machine of 2 cores:

1. Throughput, topic preloaded, transactions and dedupe on, at least 5M events: user, video,
   author and query folds, log and feedback all running: at most 10 µs of CPU an event,
   broker and store included, and at least 150,000 events/s. With the user fold and the log
   alone at least 200,000 events/s.
2. In the same run on the same topic, events/s: at least 40 times a plain Faust agent with a
   Table, at least 3 times quixstreams with RocksDB. They keep less (`baseline.py`). The ratio
   of CPU an event is reported too, since a baseline is one process and the path is several.
3. Freshness at 20,000 events/s, produce to value readable through the reader: p99 at most
   100 ms.
4. Recovery: after kill -9 of the folding worker, fresh again (a new probe within a second, or
   within the p99 before the kill if that is longer) in less than 15 s. After the store is
   flushed: rebuilt from the log at 100,000 events/s.

Reported without a bar: CPU per stage, the share of the raw-consume floor, growth from
10,000 to 1M users and from 1 to 8 partitions, the pause when a second folding worker joins and
when it leaves. After the first part every row is checked: the sum of a counter over all users
must equal the events sent, duplicates counted once.

The number of events is reduced if the warm-up shows that a part would take too long; the table
has the number. `--quick` is small and does not test the bars.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.events.baselines import BaselineRate, measure_baseline
from benchmarks.events.cluster import KEY, USER_PATH, WHOLE_PATH, Cluster, running_cluster
from benchmarks.events.freshness import Probes, run_flow
from benchmarks.events.source import Source
from benchmarks.events.throughput import EventPath, PathRun
from benchmarks.features.events import Stream
from benchmarks.report import Report
from deploy import wiring
from deploy.services.process import ServiceUnavailable
from features.feast.registry import RegisteredFeatureStore
from features.offline.backfill import backfill
from features.store import StoreDown
from streams.contract.clock import DAY_MS
from streams.event_log import EventLog

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

CPU_US, PER_S, USER_PER_S, FAUST, QUIX = 10.0, 150_000, 200_000, 40.0, 3.0
P99_MS, FRESH_S, REBUILT_PER_S, FRESH_WITHIN_S = 100.0, 15.0, 100_000, 1.0
RECOVERY_TIMEOUT_S = 60.0
SECOND_WORKER = "features-second"
BALANCED_S = 15.0  # longer than a session timeout and the rebalance after it
GROWTH_UNTIL_S = 540.0  # no further growth part starts after this time


@dataclass(frozen=True)
class EventsSize:
    """How large a run is."""

    events: int  # at most
    budget_s: float  # of the largest part; the others get a share of it
    growth_events: int  # 0: growth is not measured
    baseline_s: float
    flow_s: float
    per_s: int = 20_000
    partitions: int = 4
    seed: int = 0


FULL = EventsSize(5_000_000, 300.0, 200_000, 15.0, 15.0)
QUICK = EventsSize(40_000, 10.0, 0, 3.0, 4.0, per_s=2_000)


def run(options: Options) -> Report:
    return measure(QUICK if options.quick else FULL)


def measure(size: EventsSize) -> Report:
    report = Report("events", asdict(size))
    report.notes.append(
        f"load average before the run: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; above "
        "about 0.5, other work ran beside it and took its share of every absolute figure"
    )
    with _errors_noted(report, "the whole path"), _stack(size.partitions) as stack:
        _whole(report, size, stack)
    with _errors_noted(report, "user fold and log"), _stack(size.partitions) as stack:
        _user_path(report, size, stack)
    if size.growth_events:
        _growth(report, size)
    return report


@contextmanager
def _errors_noted(report: Report, part: str) -> Iterator[None]:
    """Notes the error of a part in the report; the other parts continue."""
    try:
        yield
    except (TimeoutError, RuntimeError, StoreDown) as error:
        _print(f"{part} ended early: {error}")
        report.notes.append(f"{part} ended early: {error}")


@contextmanager
def _stack(partitions: int) -> Iterator[Cluster]:
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folder as name, running_cluster(Path(name), partitions) as stack:
        yield stack


_STARTED = time.monotonic()


def _print(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:5.0f} s] {text}", flush=True)


def _path(stack: Cluster, names: Sequence[str], size: EventsSize, stream: Stream) -> EventPath:
    return EventPath(stack, names, Source(stream, KEY, size.seed), _print)


def _affordable(rate: float, seconds: float, most: int) -> int:
    """As many events as take `seconds` at the warm-up's rate."""
    return max(20_000, min(most, int(rate * seconds)))


def _whole(report: Report, size: EventsSize, stack: Cluster) -> None:
    stream = Stream(span_ms=DAY_MS)
    path = _path(stack, WHOLE_PATH, size, stream)
    rate = path.start()
    _print(f"the whole path is up; {rate:,.0f} events/s while warming up")
    n = _affordable(rate, size.budget_s, size.events)
    rates: dict[str, BaselineRate] = {}
    run = path.run(n, 4 * size.budget_s + 60, lambda: rates.update(_baselines(report, size, stack)))
    _print(f"whole path: {run.per_s:,.0f} events/s, {run.cpu_us:.1f} µs an event")
    _stages(report, "all", run)
    _check_whole_path(report, run, rates)
    store = wiring.feature_store(stack.settings)
    _check_counts(report, store, path)
    with _errors_noted(report, "freshness"):
        _freshness(report, size, stack, store, path)
    with _errors_noted(report, "recovery"):
        _recovery(report, size, stack, store, path)
    with _errors_noted(report, "rebalance"):
        _rebalance(report, size, stack, store, path)
    with _errors_noted(report, "rebuild"):
        _rebuild(report, size, stack, store)


def _stages(report: Report, form: str, run: PathRun) -> None:
    note = f"{run.written.messages:,} events, {run.written.duplicates:,} of them twice"
    _row(report, f"{form}: whole path", run.per_s, run.cpu_us, note)
    for stage, us in run.stage_us().items():
        _row(report, f"{form}: {stage}", "", us)


def _row(report: Report, what: str, per_s: float | str, us: float | str, note: str = "") -> None:
    report.add(what=what, events_per_s=per_s, us_per_event=us, note=note)


def _check_whole_path(report: Report, run: PathRun, rates: dict[str, BaselineRate]) -> None:
    enough = run.written.messages >= 5_000_000
    report.check("all: events", run.written.messages, ">= 5,000,000", enough)
    report.check("all: µs CPU/event", run.cpu_us, f"<= {CPU_US:g}", run.cpu_us <= CPU_US)
    report.check("all: events/s", run.per_s, f">= {PER_S:,}", run.per_s >= PER_S)
    bars = {"faust": FAUST, "quixstreams": QUIX}
    for name, bar in bars.items():
        if name in rates:
            ratio = run.per_s / rates[name].per_s
            report.check(f"all: events/s, ours/{name}", ratio, f">= {bar:g}", ratio >= bar)
            cpu = rates[name].cpu_us / run.cpu_us
            report.check(f"all: CPU an event, {name}/ours", cpu, "none", None)
    if "floor" in rates:
        share = rates["floor"].cpu_us / run.cpu_us
        report.check("all: raw consume's share of our CPU", share, "none", None)


def _baselines(report: Report, size: EventsSize, stack: Cluster) -> dict[str, BaselineRate]:
    rates: dict[str, BaselineRate] = {}
    for name in ("floor", "faust", "quixstreams"):
        try:
            rate = measure_baseline(name, stack.servers, size.partitions, size.baseline_s)
        except ServiceUnavailable as reason:
            report.notes.append(f"{name} was not measured: {reason}")
            continue
        rates[name] = rate
        _print(f"{name}: {rate.per_s:,.0f} events/s, {rate.cpu_us:.2f} µs")
        what = {"floor": "raw consume, no decoding"}.get(name, f"baseline: {name}")
        note = f"{rate.events:,} events, its own process's CPU"
        _row(report, what, rate.per_s, rate.cpu_us, note)
    return rates


def _check_counts(report: Report, store: RegisteredFeatureStore, path: EventPath) -> None:
    """Every event is counted once: the users' `shown` counts add up to the events sent."""
    found, wanted = count_shown(store), path.sent.shown
    _print(f"the user rows count {found:,} `shown` events; {wanted:,} were sent")
    report.check("all: shown counted - sent", found - wanted, "0", found == wanted)


def count_shown(store: RegisteredFeatureStore) -> int:
    """`shown` events in all user rows together."""
    users, now_ms = sorted(set(store.ids("user"))), int(time.time() * 1000)
    frames = (
        store.read("user", users[start : start + 5_000], now_ms)
        for start in range(0, len(users), 5_000)
    )
    return sum(int(np.sum(frame.columns["shown_count_all"])) for frame in frames)


def _freshness(
    report: Report, size: EventsSize, stack: Cluster, store: RegisteredFeatureStore, path: EventPath
) -> None:
    _await_folded(stack, store, path)
    ran = run_flow(stack.servers, store, path.source, size.per_s, size.flow_s)
    p50, p99 = ran.probes.percentiles_ms()
    rate = ran.events / ran.seconds
    _print(f"fresh after {p50:.0f} ms (p50), {p99:.0f} ms (p99) at {rate:,.0f} events/s")
    note = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms of {len(ran.probes.sent)} probes"
    _row(report, "freshness", rate, "", note)
    name = f"fresh at {size.per_s:,}/s, p99 ms"
    report.check(name, p99, f"<= {P99_MS:g}", p99 <= P99_MS)


def _await_folded(stack: Cluster, store: RegisteredFeatureStore, path: EventPath) -> None:
    """Waits until the events of earlier parts are folded."""
    run_flow(stack.servers, store, path.source, 100, 1.0, last_wait_s=60)


def _recovery(
    report: Report, size: EventsSize, stack: Cluster, store: RegisteredFeatureStore, path: EventPath
) -> None:
    _await_folded(stack, store, path)
    delays: list[float] = []

    def kill_and_start(probes: Probes) -> None:
        time.sleep(size.flow_s / 4)
        within_s = max(FRESH_WITHIN_S, probes.p99_s())
        stack.children.pop("features").kill()
        killed = time.monotonic()
        stack.start("features")
        while (took := probes.fresh_after(killed, within_s)) == float("inf"):
            if time.monotonic() - killed > RECOVERY_TIMEOUT_S:
                break
            time.sleep(0.05)
        delays.append(took)

    per_s, seconds = size.per_s // 20, size.flow_s * 2
    ran = run_flow(
        stack.servers, store, path.source, per_s, seconds, kill_and_start, last_wait_s=30
    )
    took, lost = delays[0], ran.probes.lost
    _print(f"fresh again {took:.1f} s after kill -9 of the folding worker, {lost} probes lost")
    note = f"{took:.1f} s at {per_s:,}/s; {lost} of {len(ran.probes.sent)} probes lost"
    _row(report, "recovery of a killed worker", ran.events / ran.seconds, "", note)
    report.check("fresh after kill -9, s", took, f"< {FRESH_S:g}", took < FRESH_S)


def _rebalance(
    report: Report, size: EventsSize, stack: Cluster, store: RegisteredFeatureStore, path: EventPath
) -> None:
    """A second folding worker joins and leaves: the longest delay of a probe each time."""
    _await_folded(stack, store, path)
    moments: list[float] = []
    each_s = max(size.flow_s, BALANCED_S)

    def join_and_leave(_: Probes) -> None:
        for act in (
            lambda: None,
            lambda: stack.start(SECOND_WORKER),
            lambda: stack.stop(SECOND_WORKER),
        ):
            moments.append(time.monotonic())
            act()
            time.sleep(each_s)
        moments.append(time.monotonic())

    per_s = size.per_s // 20
    ran = run_flow(
        stack.servers, store, path.source, per_s, 3 * each_s, join_and_leave, last_wait_s=30
    )
    before, joins, leaves = (ran.probes.longest_s(*pair) for pair in pairwise(moments))
    _print(f"longest probe {before:.1f} s, {joins:.1f} s on a join, {leaves:.1f} s on a leave")
    note = (
        f"longest probe {before:.1f} s before, {joins:.1f} s on the join, {leaves:.1f} s on the leave; "
        f"{ran.probes.lost} of {len(ran.probes.sent)} probes lost"
    )
    _row(report, "rebalance: a second worker", ran.events / ran.seconds, "", note)
    ended = [name for name, child in stack.children.items() if not child.alive()]
    report.check("workers that ended in a rebalance", len(ended), "0", not ended)


def _rebuild(
    report: Report, size: EventsSize, stack: Cluster, store: RegisteredFeatureStore
) -> None:
    for name in list(stack.children):
        stack.stop(name)
    store.connection.client.flushall()
    events = EventLog(stack.settings.log_dir).scan().select(pl.len()).collect().item()
    fresh = wiring.feature_store(stack.settings, cached_rows=50_000)
    before, cpu, began = _cpu_s(stack), time.process_time(), time.perf_counter()
    share = _backfill_for(size.budget_s / 2, stack, fresh)
    seconds = time.perf_counter() - began
    used = time.process_time() - cpu + _cpu_s(stack) - before
    done = max(1, round(share * events))
    _print(f"store rebuilt from {done:,} events at {done / seconds:,.0f} events/s")
    note = f"{done:,} of the log's {events:,} events"
    _row(report, "rebuild after a flush", done / seconds, used / done * 1e6, note)
    good = done / seconds >= REBUILT_PER_S
    report.check("rebuild, events/s", done / seconds, f">= {REBUILT_PER_S:,}", good)


class _TimeIsUp(Exception):
    """The part has used its time."""


def _backfill_for(seconds: float, stack: Cluster, store: RegisteredFeatureStore) -> float:
    """The share of the log that was folded when it ended or time was up."""
    began, shares = time.monotonic(), [0.0]

    def progress(share: float, _what: str) -> None:
        shares.append(share)
        if time.monotonic() - began > seconds:
            raise _TimeIsUp

    with suppress(_TimeIsUp):
        backfill(stack.settings.log_dir, store, progress=progress)
    return shares[-1]


def _cpu_s(stack: Cluster) -> float:
    return sum(stack.cpu().values())


def _user_path(report: Report, size: EventsSize, stack: Cluster) -> None:
    path = _path(stack, USER_PATH, size, Stream(span_ms=DAY_MS))
    rate = path.start()
    n = _affordable(rate, size.budget_s / 3, size.events)
    run = path.run(n, 2 * size.budget_s + 60, lambda: None)
    _print(f"user fold and log: {run.per_s:,.0f} events/s, {run.cpu_us:.1f} µs an event")
    _stages(report, "user fold and log", run)
    good = run.per_s >= USER_PER_S
    report.check("user fold and log: events/s", run.per_s, f">= {USER_PER_S:,}", good)


def _growth(report: Report, size: EventsSize) -> None:
    for users, partitions in ((10_000, 4), (1_000_000, 4), (50_000, 1), (50_000, 8)):
        what = f"growth: {users:,} users, {partitions} partitions"
        if time.monotonic() - _STARTED > GROWTH_UNTIL_S:
            report.notes.append(f"{what}: left out: the run took too long already")
            continue
        with _errors_noted(report, what), _stack(partitions) as stack:
            path = _path(stack, WHOLE_PATH, size, Stream(users=users, span_ms=DAY_MS))
            n = _affordable(path.start(), size.budget_s / 5, size.growth_events)
            run = path.run(n, size.budget_s, lambda: None)
            _print(f"{what}: {run.per_s:,.0f} events/s, {run.cpu_us:.1f} µs")
            _row(report, what, run.per_s, run.cpu_us, f"{n:,} events")
