"""How fast rows of a file reach their topic.

Claim: CSV rows are imported at half the rate, or more, at which the same rows, ready as JSON, pass
through the topic (one producer writes them, one consumer reads them; the slower of both counts).
Apache Kafka 4.4, one thread each, three alternating rounds, medians. Bar: 0.5, set before the run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from benchmarks.report import Report
from deploy.services import process
from deploy.services.kafka import Kafka
from streams.bus.contract import Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import BEHAVIOUR, TopicSpec
from streams.imports.mapping import load
from streams.imports.send import Progress, send
from streams.imports.source import Place, opened

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

ROWS, QUICK_ROWS = 1_000_000, 50_000
ROUNDS, QUICK_ROUNDS = 3, 1
BAR = 0.5
START_MS = 1_569_888_000_000


def run(options: Options) -> Report:
    rows = QUICK_ROWS if options.quick else ROWS
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    report = Report("imports", {"rows": rows, "rounds": rounds})
    with tempfile.TemporaryDirectory() as folder:
        place = _file(Path(folder) / "events.csv", rows)
        broker = Kafka(Path(folder), Path(folder) / "kafka")
        child = process.start(broker, 120.0)
        try:
            taken = [
                _round(KafkaBus(broker.bootstrap_servers), place, Path(folder))
                for _ in range(rounds)
            ]
        finally:
            child.stop()
    medians = {name: statistics.median(each[name] for each in taken) for name in taken[0]}
    for name, seconds in medians.items():
        report.add(step=name, seconds=round(seconds, 2), rows_per_s=round(rows / seconds))
    passed = max(medians["written, ready as JSON"], medians["read"])
    ratio = passed / medians["imported from CSV"]
    report.check("rows/s of an import over those of the topic", ratio, f">= {BAR}", ratio >= BAR)
    return report


def _round(bus: KafkaBus, place: Place, folder: Path) -> dict[str, float]:
    mapping = load("rees46")
    topic = f"ready-{time.monotonic_ns()}"
    bus.ensure_topics([TopicSpec(BEHAVIOUR, 4), TopicSpec(topic, 4)])
    with opened(place, mapping) as rows:
        pieces = list(rows.pieces(shift_ms=0, now_ms=START_MS))
    messages = [
        [Outgoing(topic, body.encode(), key.encode()) for key, body in zip(*columns, strict=True)]
        for piece in pieces
        for columns in [(piece["key"].to_pylist(), piece["body"].to_pylist())]
    ]
    return {
        "written, ready as JSON": _timed(lambda: _write(bus, messages)),
        "read": _timed(lambda: _read(bus, topic, sum(map(len, messages)))),
        "imported from CSV": _timed(lambda: _import(bus, place, mapping, folder)),
    }


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _write(bus: KafkaBus, messages: list[list[Outgoing]]) -> None:
    producer = bus.producer()
    for piece in messages:
        producer.send(piece)
    producer.close()


def _read(bus: KafkaBus, topic: str, count: int) -> None:
    consumer, seen = bus.consumer([topic], f"read-{topic}"), 0
    while seen < count:
        seen += len(consumer.poll(10_000, 1.0))
    consumer.close()


def _import(bus: KafkaBus, place: Place, mapping: Any, folder: Path) -> None:
    progress = Progress(folder / f"progress-{time.monotonic_ns()}.json")
    with opened(place, mapping) as rows:
        send(bus, rows.pieces(shift_ms=0, now_ms=START_MS), mapping, progress, lambda _: None)


def _file(path: Path, rows: int) -> Place:
    """A file of REES46's form."""
    rng = np.random.default_rng(7)
    times = START_MS + np.sort(rng.integers(0, 30 * 86_400_000, rows))
    frame = pl.DataFrame(
        {
            "event_time": pl.Series(times)
            .cast(pl.Datetime("ms"))
            .dt.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "event_type": rng.choice(["view", "cart", "purchase"], rows, p=[0.9, 0.07, 0.03]),
            "product_id": rng.integers(1_000_000, 1_100_000, rows),
            "category_id": rng.integers(10**18, 10**18 + 500, rows),
            "category_code": rng.choice(["electronics.smartphone", "apparel.shoes", ""], rows),
            "brand": rng.choice(["acme", "bolt", ""], rows),
            "price": np.round(rng.gamma(2, 60, rows), 2),
            "user_id": rng.integers(5 * 10**8, 5 * 10**8 + 50_000, rows),
            "user_session": rng.integers(0, 2**60, rows),
        }
    )
    frame.write_csv(path)
    return Place(str(path))
