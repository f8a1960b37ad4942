"""The event path: JSON on Apache Kafka 4.4 to rows in Valkey, all parts on one machine.

The bars, set before any figure, for a machine of 2 cores:

1. Throughput, topic preloaded, transactions and dedupe on, at least 5M events: user, video,
   author and query folds, log and feedback all running: at most 10 µs of CPU an event,
   broker and store included, and at least 150,000 events/s. With the user fold and the log
   alone at least 200,000 events/s.
2. In the same run on the same topic, events/s: at least 40 times a plain Faust agent with a
   Table, at least 3 times quixstreams with RocksDB. They keep less (`peer.py`). The ratio
   of CPU an event stands beside, since a peer is one process and the path is several.
3. Freshness at 20,000 events/s, produce to value readable through the reader: p99 at most
   100 ms.
4. Recovery: after kill -9 of the folding worker, fresh again (a new probe within a second, or
   within the p99 of before where that is longer) in less than 15 s. After the store is
   flushed: the log rebuilt at 100,000 events/s.

Reported without a bar: CPU per stage, the share of the raw-consume floor, growth from
10,000 to 1M users and from 1 to 8 partitions, the pause as a second folding worker joins and
as it ends for good. After the first part every row is checked:
the sum of a counter over all users must be what was sent, duplicates once.

The number of events is cut where a warm-up says that a part would take too long; the table
says how many there were. `--quick` is small and says nothing about the bars.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path as Folder
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.events.fresh import Probes, flow
from benchmarks.events.peers import Rate, measured
from benchmarks.events.processes import KEY, USER_ALONE, WHOLE, Mill, mill
from benchmarks.events.source import Source
from benchmarks.events.throughput import Passed, Path
from benchmarks.features.events import Stream
from benchmarks.report import Report
from deploy import wiring
from deploy.services.process import PartUnavailable
from features.feast.registry import RegisteredFeatureStore
from features.offline.backfill import backfill
from features.store import StoreDown
from streams.contract.clock import DAY_MS
from streams.event_log import EventLog

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

CPU_US, PER_S, USER_PER_S, FAUST, QUIX = 10.0, 150_000, 200_000, 40.0, 3.0
P99_MS, FRESH_S, REBUILT_PER_S, FRESH_WITHIN_S = 100.0, 15.0, 100_000, 1.0
RECOVERY_PATIENCE_S = 60.0
BESIDE = "features-beside"  # a second folding worker
BALANCED_S = 15.0  # longer than a session and what it leaves behind
GROWTH_UNTIL_S = 540.0  # of the run: no further part begins after that


@dataclass(frozen=True)
class Size:
    events: int  # at most
    budget_s: float  # of the largest part; the others get their share of it
    growth_events: int  # 0: no growth
    peer_s: float
    flow_s: float
    per_s: int = 20_000
    partitions: int = 4
    seed: int = 0


FULL = Size(5_000_000, 300.0, 200_000, 15.0, 15.0)
QUICK = Size(40_000, 10.0, 0, 3.0, 4.0, per_s=2_000)


def run(options: Options) -> Report:
    return measure(QUICK if options.quick else FULL)


def measure(size: Size) -> Report:
    report = Report("events", asdict(size))
    report.notes.append(
        f"load average before the run: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; above "
        "about 0.5, other work ran beside it and took its share of every absolute figure"
    )
    with _noted(report, "the whole path"), _stack(size.partitions) as stack:
        _whole(report, size, stack)
    with _noted(report, "user fold and log"), _stack(size.partitions) as stack:
        _user_alone(report, size, stack)
    if size.growth_events:
        _growth(report, size)
    return report


@contextmanager
def _noted(report: Report, part: str) -> Iterator[None]:
    """What a part could not do is said in the report, and the others go on."""
    try:
        yield
    except (TimeoutError, RuntimeError, StoreDown) as error:
        _say(f"{part} ended early: {error}")
        report.notes.append(f"{part} ended early: {error}")


@contextmanager
def _stack(partitions: int) -> Iterator[Mill]:
    beside = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with beside as name, mill(Folder(name), partitions) as stack:
        yield stack


_BEGAN = time.monotonic()


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", flush=True)


def _path(stack: Mill, names: Sequence[str], size: Size, stream: Stream) -> Path:
    return Path(stack, names, Source(stream, KEY, size.seed), _say)


def _affordable(rate: float, seconds: float, most: int) -> int:
    """Events that a part may have: those of `seconds` at the warm-up's rate."""
    return max(20_000, min(most, int(rate * seconds)))


def _whole(report: Report, size: Size, stack: Mill) -> None:
    stream = Stream(span_ms=DAY_MS)
    path = _path(stack, WHOLE, size, stream)
    rate = path.start()
    _say(f"the whole path is up; {rate:,.0f} events/s while warming up")
    n = _affordable(rate, size.budget_s, size.events)
    rates: dict[str, Rate] = {}
    passed = path.passed(
        n, 4 * size.budget_s + 60, lambda: rates.update(_peers(report, size, stack))
    )
    _say(f"whole path: {passed.per_s:,.0f} events/s, {passed.cpu_us:.1f} µs an event")
    _stages(report, "all", passed)
    _judge_whole(report, passed, rates)
    store = wiring.feature_store(stack.settings)
    _counted(report, store, path)
    with _noted(report, "freshness"):
        _freshness(report, size, stack, store, path)
    with _noted(report, "recovery"):
        _recovery(report, size, stack, store, path)
    with _noted(report, "rebalance"):
        _rebalance(report, size, stack, store, path)
    with _noted(report, "rebuild"):
        _rebuild(report, size, stack, store)


def _stages(report: Report, form: str, passed: Passed) -> None:
    note = f"{passed.written.messages:,} events, {passed.written.duplicates:,} of them twice"
    _row(report, f"{form}: whole path", passed.per_s, passed.cpu_us, note)
    for stage, us in passed.stage_us().items():
        _row(report, f"{form}: {stage}", "", us)


def _row(report: Report, what: str, per_s: float | str, us: float | str, note: str = "") -> None:
    report.add(what=what, events_per_s=per_s, us_per_event=us, note=note)


def _judge_whole(report: Report, passed: Passed, rates: dict[str, Rate]) -> None:
    enough = passed.written.messages >= 5_000_000
    report.judge("all: events", passed.written.messages, ">= 5,000,000", enough)
    report.judge("all: µs CPU/event", passed.cpu_us, f"<= {CPU_US:g}", passed.cpu_us <= CPU_US)
    report.judge("all: events/s", passed.per_s, f">= {PER_S:,}", passed.per_s >= PER_S)
    bars = {"faust": FAUST, "quixstreams": QUIX}
    for name, bar in bars.items():
        if name in rates:
            ratio = passed.per_s / rates[name].per_s
            report.judge(f"all: events/s, ours/{name}", ratio, f">= {bar:g}", ratio >= bar)
            cpu = rates[name].cpu_us / passed.cpu_us
            report.judge(f"all: CPU an event, {name}/ours", cpu, "none", None)
    if "floor" in rates:
        share = rates["floor"].cpu_us / passed.cpu_us
        report.judge("all: raw consume's share of our CPU", share, "none", None)


def _peers(report: Report, size: Size, stack: Mill) -> dict[str, Rate]:
    rates: dict[str, Rate] = {}
    for name in ("floor", "faust", "quixstreams"):
        try:
            rate = measured(name, stack.servers, size.partitions, size.peer_s)
        except PartUnavailable as reason:
            report.notes.append(f"{name} was not measured: {reason}")
            continue
        rates[name] = rate
        _say(f"{name}: {rate.per_s:,.0f} events/s, {rate.cpu_us:.2f} µs")
        what = {"floor": "raw consume, no decoding"}.get(name, f"peer: {name}")
        note = f"{rate.events:,} events, its own process's CPU"
        _row(report, what, rate.per_s, rate.cpu_us, note)
    return rates


def _counted(report: Report, store: RegisteredFeatureStore, path: Path) -> None:
    """Every event once: the users' `shown` counts add up to what was sent."""
    users = sorted(set(store.ids("user")))
    now_ms, found = int(time.time() * 1000), 0
    for start in range(0, len(users), 5_000):
        frame = store.read("user", users[start : start + 5_000], now_ms)
        found += int(np.sum(frame.columns["shown_count_all"]))
    wanted = path.sent.shown
    _say(f"{len(users):,} user rows count {found:,} showings; {wanted:,} were sent")
    report.judge("all: showings counted - sent", found - wanted, "0", found == wanted)


def _freshness(
    report: Report, size: Size, stack: Mill, store: RegisteredFeatureStore, path: Path
) -> None:
    _settle(stack, store, path)
    ran = flow(stack.servers, store, path.source, size.per_s, size.flow_s)
    p50, p99 = ran.probes.percentiles_ms()
    rate = ran.events / ran.seconds
    _say(f"fresh after {p50:.0f} ms (p50), {p99:.0f} ms (p99) at {rate:,.0f} events/s")
    note = f"p50 {p50:.0f} ms, p99 {p99:.0f} ms of {len(ran.probes.sent)} probes"
    _row(report, "freshness", rate, "", note)
    name = f"fresh at {size.per_s:,}/s, p99 ms"
    report.judge(name, p99, f"<= {P99_MS:g}", p99 <= P99_MS)


def _settle(stack: Mill, store: RegisteredFeatureStore, path: Path) -> None:
    """Waits until what an earlier part has queued is folded."""
    flow(stack.servers, store, path.source, 100, 1.0, settle_s=60)


def _recovery(
    report: Report, size: Size, stack: Mill, store: RegisteredFeatureStore, path: Path
) -> None:
    _settle(stack, store, path)
    found: list[float] = []

    def kill_and_start(probes: Probes) -> None:
        time.sleep(size.flow_s / 4)
        within_s = max(FRESH_WITHIN_S, probes.usual_s())
        stack.children.pop("features").kill()
        killed = time.monotonic()
        stack.start("features")
        while (took := probes.fresh_after(killed, within_s)) == float("inf"):
            if time.monotonic() - killed > RECOVERY_PATIENCE_S:
                break
            time.sleep(0.05)
        found.append(took)

    per_s, seconds = size.per_s // 20, size.flow_s * 2
    ran = flow(stack.servers, store, path.source, per_s, seconds, kill_and_start, settle_s=30)
    took, lost = found[0], ran.probes.lost
    _say(f"fresh again {took:.1f} s after kill -9 of the folding worker, {lost} probes lost")
    note = f"{took:.1f} s at {per_s:,}/s; {lost} of {len(ran.probes.sent)} probes lost"
    _row(report, "recovery of a killed worker", ran.events / ran.seconds, "", note)
    report.judge("fresh after kill -9, s", took, f"< {FRESH_S:g}", took < FRESH_S)


def _rebalance(
    report: Report, size: Size, stack: Mill, store: RegisteredFeatureStore, path: Path
) -> None:
    """A second folding worker comes and ends again: how long the latest probe took each time."""
    _settle(stack, store, path)
    moments: list[float] = []
    each_s = max(size.flow_s, BALANCED_S)

    def come_and_go(_: Probes) -> None:
        for act in (lambda: None, lambda: stack.start(BESIDE), lambda: stack.stop(BESIDE)):
            moments.append(time.monotonic())
            act()
            time.sleep(each_s)
        moments.append(time.monotonic())

    per_s = size.per_s // 20
    ran = flow(stack.servers, store, path.source, per_s, 3 * each_s, come_and_go, settle_s=30)
    quiet, joins, ends = (ran.probes.latest_s(*span) for span in pairwise(moments))
    _say(f"latest probe {quiet:.1f} s, {joins:.1f} s as a worker joins, {ends:.1f} s as it ends")
    note = (
        f"latest probe {quiet:.1f} s before, {joins:.1f} s as it joins, {ends:.1f} s as it ends; "
        f"{ran.probes.lost} of {len(ran.probes.sent)} probes lost"
    )
    _row(report, "rebalance: a second worker", ran.events / ran.seconds, "", note)
    ended = [name for name, child in stack.children.items() if not child.alive()]
    report.judge("workers that a rebalance ended", len(ended), "0", not ended)


def _rebuild(report: Report, size: Size, stack: Mill, store: RegisteredFeatureStore) -> None:
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
    _say(f"store rebuilt from {done:,} events at {done / seconds:,.0f} events/s")
    note = f"{done:,} of the log's {events:,} events"
    _row(report, "rebuild after a flush", done / seconds, used / done * 1e6, note)
    good = done / seconds >= REBUILT_PER_S
    report.judge("rebuild, events/s", done / seconds, f">= {REBUILT_PER_S:,}", good)


class _Enough(Exception):
    """The part has had its time."""


def _backfill_for(seconds: float, stack: Mill, store: RegisteredFeatureStore) -> float:
    """The share of the log that was folded when it was done, or when time was up."""
    began, shares = time.monotonic(), [0.0]

    def progress(share: float, _what: str) -> None:
        shares.append(share)
        if time.monotonic() - began > seconds:
            raise _Enough

    with suppress(_Enough):
        backfill(stack.settings.log_dir, store, progress=progress)
    return shares[-1]


def _cpu_s(stack: Mill) -> float:
    return sum(stack.cpu().values())


def _user_alone(report: Report, size: Size, stack: Mill) -> None:
    path = _path(stack, USER_ALONE, size, Stream(span_ms=DAY_MS))
    rate = path.start()
    n = _affordable(rate, size.budget_s / 3, size.events)
    passed = path.passed(n, 2 * size.budget_s + 60, lambda: None)
    _say(f"user fold and log: {passed.per_s:,.0f} events/s, {passed.cpu_us:.1f} µs an event")
    _stages(report, "user fold and log", passed)
    good = passed.per_s >= USER_PER_S
    report.judge("user fold and log: events/s", passed.per_s, f">= {USER_PER_S:,}", good)


def _growth(report: Report, size: Size) -> None:
    for users, partitions in ((10_000, 4), (1_000_000, 4), (50_000, 1), (50_000, 8)):
        what = f"growth: {users:,} users, {partitions} partitions"
        if time.monotonic() - _BEGAN > GROWTH_UNTIL_S:
            report.notes.append(f"{what}: left out, the run had taken long enough")
            continue
        with _noted(report, what), _stack(partitions) as stack:
            path = _path(stack, WHOLE, size, Stream(users=users, span_ms=DAY_MS))
            n = _affordable(path.start(), size.budget_s / 5, size.growth_events)
            passed = path.passed(n, size.budget_s, lambda: None)
            _say(f"{what}: {passed.per_s:,.0f} events/s, {passed.cpu_us:.1f} µs")
            _row(report, what, passed.per_s, passed.cpu_us, f"{n:,} events")
