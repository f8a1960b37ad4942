"""Exactness: processes and servers are killed at random; no event is lost or counted twice.

JSON on Apache Kafka 4.4 through ingest, the log, feedback and the folds of user, video,
author and query into Valkey. 1M events: 5 % late, 1 % sent twice up to 50,000 events apart
(so also across batches and restarts), 0.1 % malformed in seven ways. Meanwhile the ingest
process, the folding worker, the log writer, the broker and the store are each killed (-9) at
moments drawn by a seed; a killed store is empty after its restart. Then every dead letter is
repaired and sent again. `--declared` adds two signals and three attributes of items that an
owner declared (`benchmarks.events.declared`).

The bars, set before any measurement; each is 0:

1. Log: events not counted exactly once, copies missing or unmarked, wrong fields.
2. Dead letters that differ from the malformed events; repaired ones that are not sent again.
3. Rows of each entity that differ from what polars counts over the events sent
   (`expected.py`, which reads the declarations and none of the code that folds).
4. Rows that differ from a rebuild of the log (`tidemill features diff`).
5. Impressions that differ from the batch join by polars.
6. With `--declared`: items of the catalogue that differ from those sent.

At least one kill must interrupt an open transaction, or that case was not tested. `--quick` is
small: it has few transactions, and a kill seldom finds one open. The seed of the kills is
printed and saved with the result: TIDEMILL_SEED repeats a run's kills.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from benchmarks.events.cluster import WHOLE_PATH, Cluster, running_cluster
from benchmarks.events.declared import items
from benchmarks.events.source import send
from benchmarks.exactness.faults import FaultInjector
from benchmarks.exactness.stored_state import StoredState
from benchmarks.exactness.stream import Sent, stream
from benchmarks.report import Report
from deploy import wiring
from features.definitions import DEFINITIONS
from streams.bus.contract import Outgoing
from streams.contract.topics import CATALOGUE

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SHOWN = 5  # differences named in the notes, of each kind
AT_MOST = 10_000  # differences that are counted, of each kind


@dataclass(frozen=True)
class ExactnessSize:
    """How large a run is."""

    events: int
    each: int  # kills of each process and server
    timeout_s: float  # for each condition that is awaited
    partitions: int = 4
    seed: int = 0  # of the events


FULL = ExactnessSize(1_000_000, 3, 600.0)
QUICK = ExactnessSize(20_000, 1, 120.0)


def run(options: Options) -> Report:
    size = QUICK if options.quick else FULL
    drawn = int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
    name = "exactness_declared" if options.declared else "exactness"
    report = Report(name, asdict(size) | {"kill_seed": drawn})
    _print(f"TIDEMILL_SEED={drawn}")
    sent = stream(size.events, size.seed, declared=options.declared)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        running_cluster(
            Path(folder), size.partitions, declared=options.declared, caps=False
        ) as stack,
    ):
        _measure(report, size, stack, sent, random.Random(drawn))
    return report


_STARTED = time.monotonic()


def _print(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:5.0f} s] {text}", flush=True)


def _measure(
    report: Report, size: ExactnessSize, stack: Cluster, sent: Sent, rng: random.Random
) -> None:
    bus = wiring.bus(stack.settings, ensure_topics=True)
    messages = _preload(stack, sent)
    stated = items() if stack.settings.signals else []
    bus.producer().send([Outgoing(CATALOGUE, e.model_dump_json().encode(), b"") for e in stated])
    _print(f"{messages:,} messages are in the topic, {len(sent.broken):,} of them malformed")
    stored = StoredState(stack, sent, bus)
    injector = FaultInjector(stack, rng, messages, size.each, _print)
    began = time.monotonic()
    for name in WHOLE_PATH:
        stack.start(name)
    good = messages - len(sent.broken)
    _wait(
        injector,
        size,
        lambda: injector.finished() and stored.logged() >= good,
        "all events in the log",
    )
    _wait(injector, size, lambda: stored.refused() >= len(sent.broken), "all dead letters written")
    _check_zero(report, "dead letters that differ", stored.dead_letter_differences())
    replayed = stored.replay_repaired()
    _print(f"{replayed.sent:,} dead letters repaired and sent again")
    _wait(injector, size, lambda: stored.logged() >= messages, "the repaired events in the log")
    _wait(injector, size, stored.folded, "all events folded")
    _wait(injector, size, lambda: not stored.feedback_differences(), "all feedback joined")
    seconds = time.monotonic() - began
    report.check("repaired dead letters - sent again", len(sent.broken) - replayed.sent, "0",
                 replayed.sent == len(sent.broken))  # fmt: skip
    _check_all(report, stored)
    if stated:
        _check_zero(report, "catalogue: items that differ", stored.item_differences(stated))
    _add_rows(report, injector, messages, seconds)
    injector.close()


def _preload(stack: Cluster, sent: Sent) -> int:
    producer = Producer(
        {"bootstrap.servers": stack.servers, "linger.ms": 20,
         "queue.buffering.max.messages": 1_000_000}
    )  # fmt: skip
    count = 0
    for keys, values in sent.messages():
        send(producer, keys, values)
        producer.flush()
        count += len(values)
    return count


def _wait(
    injector: FaultInjector, size: ExactnessSize, condition: Callable[[], bool], what: str
) -> None:
    """Checks seldom, as the condition reads files and rows. A timeout shows up as differences."""
    next_check = [0.0]

    def checked() -> bool:
        if time.monotonic() < next_check[0]:
            return False
        began = time.monotonic()
        try:
            met = condition()
        except Exception as error:  # a process is down, or a file is being merged
            _print(f"{what}: no answer yet ({type(error).__name__})")
            met = False
        next_check[0] = time.monotonic() + max(1.0, 2 * (time.monotonic() - began))
        return met

    if injector.run_until(checked, what, size.timeout_s):
        _print(what)


def _check_all(report: Report, stored: StoredState) -> None:
    _check_zero(report, "log: events that differ", stored.log_differences())
    for entity in DEFINITIONS:
        _check_zero(report, f"{entity} values unlike polars", stored.row_differences(entity))
    _check_zero(report, "values unlike a rebuild (diff)", stored.rebuild_differences())
    _check_zero(report, "impressions unlike the batch join", stored.feedback_differences())


def _check_zero(report: Report, what: str, differences: Iterable[str]) -> None:
    found = list(islice(differences, AT_MOST))
    report.check(what, len(found), "0", not found)
    report.notes.extend(found[:SHOWN])
    _print(f"{what}: {len(found):,}")


def _add_rows(report: Report, injector: FaultInjector, messages: int, seconds: float) -> None:
    for target, count in sorted(injector.kills.items()):
        report.add(what=f"kill -9 of {target}", count=count)
    report.add(what="kills in an open transaction", count=injector.in_transaction)
    report.add(what="messages", count=messages)
    report.add(what="seconds until complete", count=round(seconds))
    good = injector.in_transaction > 0
    gated = (">= 1", good) if injector.each > 1 else ("none", None)
    report.check("kills in an open transaction", injector.in_transaction, *gated)
