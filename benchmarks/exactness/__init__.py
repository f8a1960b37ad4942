"""Exactness: everything is killed at random amid the work, and nothing is lost or doubled.

JSON on Apache Kafka 4.4 through the door, the log, feedback and the folds of user, video,
author and query into Valkey. 1M events: 5 % late, 1 % sent twice up to 50,000 events apart
(so also across batches and restarts), 0.1 % malformed in seven ways. Meanwhile the door, the
folding worker, the facts' worker, the broker and the store are each killed (-9) at moments
drawn by a seed; a killed store comes back empty. Then every dead letter is mended and sent
again.

The bars, set before any figure; each is 0:

1. Log: events that are not counted exactly once, copies missing or unmarked, wrong fields.
2. Dead letters that are not exactly what was malformed; mended ones that are not sent again.
3. Rows of each entity that differ from what polars counts over the generator's truth
   (`truth.py`, which reads the declarations and none of the code that folds).
4. Rows that differ from a rebuild of the log (`tidemill features diff`).
5. Impressions that differ from the batch join by polars.

And at least one kill must have cut a transaction off, else nothing was shown of it.
`--quick` is small: its door is done in a round or two, and a kill seldom finds one open. The
seed of the kills is printed, and kept with the result: TIDEMILL_SEED repeats a run's kills.
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

from benchmarks.events.processes import WHOLE, Mill, mill
from benchmarks.events.source import send
from benchmarks.exactness.faults import Storm
from benchmarks.exactness.held import Held
from benchmarks.exactness.stream import Sent, stream
from benchmarks.report import Report
from deploy import wiring
from features.definitions import DEFINITIONS

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

SHOWN = 5  # differences named in the notes, of each kind
AT_MOST = 10_000  # differences that are looked for, of each kind


@dataclass(frozen=True)
class Size:
    events: int
    each: int  # kills of each part
    patience_s: float  # for each thing that is waited for
    partitions: int = 4
    seed: int = 0  # of the events


FULL = Size(1_000_000, 3, 600.0)
QUICK = Size(20_000, 1, 120.0)


def run(options: Options) -> Report:
    size = QUICK if options.quick else FULL
    drawn = int(os.environ.get("TIDEMILL_SEED") or random.SystemRandom().randrange(2**32))
    report = Report("exactness", asdict(size) | {"kill_seed": drawn})
    _say(f"TIDEMILL_SEED={drawn}")
    sent = stream(size.events, size.seed)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        mill(Path(folder), size.partitions) as stack,
    ):
        _measure(report, size, stack, sent, random.Random(drawn))
    return report


_BEGAN = time.monotonic()


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", flush=True)


def _measure(report: Report, size: Size, stack: Mill, sent: Sent, rng: random.Random) -> None:
    bus = wiring.bus(stack.settings, ensure_topics=True)
    messages = _preload(stack, sent)
    _say(f"{messages:,} messages lie in the topic, {len(sent.broken):,} of them malformed")
    held = Held(stack, sent, bus)
    storm = Storm(stack, rng, messages, size.each, _say)
    began = time.monotonic()
    for name in WHOLE:
        stack.start(name)
    good = messages - len(sent.broken)
    _wait(storm, size, lambda: storm.over() and held.logged() >= good, "the log whole")
    _wait(storm, size, lambda: held.refused() >= len(sent.broken), "the dead letters there")
    _judge(report, "dead letters that differ", held.letter_differences())
    replayed = held.mended()
    _say(f"{replayed.sent:,} dead letters mended and sent again")
    _wait(storm, size, lambda: held.logged() >= messages, "the mended ones in the log")
    _wait(storm, size, held.folded, "everything counted")
    _wait(storm, size, lambda: not held.feedback_differences(), "feedback joined")
    seconds = time.monotonic() - began
    report.judge("mended letters - sent again", len(sent.broken) - replayed.sent, "0",
                 replayed.sent == len(sent.broken))  # fmt: skip
    _judge_all(report, held)
    _tell(report, storm, messages, seconds)
    storm.close()


def _preload(stack: Mill, sent: Sent) -> int:
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


def _wait(storm: Storm, size: Size, true: Callable[[], bool], what: str) -> None:
    """Looks seldom: what is asked reads files and rows. What never comes shows as differences."""
    next_look = [0.0]

    def looked() -> bool:
        if time.monotonic() < next_look[0]:
            return False
        began = time.monotonic()
        try:
            came = true()
        except Exception as error:  # a part that is down, a file that is being merged
            _say(f"{what}: no answer yet ({type(error).__name__})")
            came = False
        next_look[0] = time.monotonic() + max(1.0, 2 * (time.monotonic() - began))
        return came

    if storm.until(looked, what, size.patience_s):
        _say(what)


def _judge_all(report: Report, held: Held) -> None:
    _judge(report, "log: events that differ", held.log_differences())
    for entity in DEFINITIONS:
        _judge(report, f"{entity} values beside polars", held.row_differences(entity))
    _judge(report, "values beside a rebuild (diff)", held.rebuild_differences())
    _judge(report, "impressions beside the batch join", held.feedback_differences())


def _judge(report: Report, what: str, differences: Iterable[str]) -> None:
    found = list(islice(differences, AT_MOST))
    report.judge(what, len(found), "0", not found)
    report.notes.extend(found[:SHOWN])
    _say(f"{what}: {len(found):,}")


def _tell(report: Report, storm: Storm, messages: int, seconds: float) -> None:
    for victim, count in sorted(storm.kills.items()):
        report.add(what=f"kill -9 of {victim}", count=count)
    report.add(what="kills that cut a transaction off", count=storm.in_transaction)
    report.add(what="messages", count=messages)
    report.add(what="seconds until all was there", count=round(seconds))
    good = storm.in_transaction > 0
    gated = (">= 1", good) if storm.each > 1 else ("none", None)
    report.judge("kills that cut a transaction off", storm.in_transaction, *gated)
