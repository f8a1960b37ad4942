"""A large catalogue of free tags: its memory, and feeds while it changes.

100,000 items with up to 32 tags each, of 50,000 by a power law. One process holds the gateway with
bus, store and models in memory, so the figures are the catalogue's and the pipeline's. Feeds are
asked one after another in blocks that alternate: with ten catalogue changes a second (half of them
new items), and without. The bars, set before any run:

1. Memory: a process with the gateway after feeds and changes is at most 300 MB larger than the
   same with a catalogue without tags.
2. p99 of a feed during the changes is at most 1.5 times the p99 without.

`--quick`: 5,000 items and short blocks; its bars are reported, not checked.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil

from benchmarks.catalogue.gateway import USERS, Changes, catalogue_of, gateway_of
from benchmarks.report import Report
from serving.gateway import Gateway
from serving.surfaces.feed import FeedRequest

if TYPE_CHECKING:
    from benchmarks.__main__ import Options

CHANGES_PER_S = 10.0
MEMORY_BAR_MB, P99_BAR = 300.0, 1.5


@dataclass(frozen=True)
class CatalogueSize:
    """How large a run is. `blocks`: of each of the two kinds."""

    items: int
    tags: int
    blocks: int
    block_s: float


FULL = CatalogueSize(100_000, 32, 6, 15.0)
QUICK = CatalogueSize(5_000, 32, 2, 2.0)


@dataclass(frozen=True)
class Measured:
    """What one process saw: resident memory in MB, and feed latencies in ms."""

    memory_mb: float
    quiet_ms: np.ndarray
    changing_ms: np.ndarray
    changes: int


def run(options: Options) -> Report:
    size = QUICK if options.quick else FULL
    report = Report("catalogue", asdict(size) | {"changes_per_s": CHANGES_PER_S})
    found = {tags: _in_own_process(size, tags) for tags in (0, size.tags)}
    for tags, measured in found.items():
        for kind, took in (("no changes", measured.quiet_ms), ("changes", measured.changing_ms)):
            report.add(
                tags=tags,
                during=kind,
                feeds=len(took),
                p50_ms=float(np.percentile(took, 50)),
                p99_ms=float(np.percentile(took, 99)),
                memory_mb=measured.memory_mb,
            )
    plain, tagged = found[0], found[size.tags]
    more_mb = tagged.memory_mb - plain.memory_mb
    ratio = float(np.percentile(tagged.changing_ms, 99) / np.percentile(tagged.quiet_ms, 99))
    _check(report, "memory above the catalogue without tags, MB", more_mb, MEMORY_BAR_MB, options)
    _check(report, "p99 of a feed during changes / without", ratio, P99_BAR, options)
    report.notes.append(f"{tagged.changes} changes during the measurement with tags")
    return report


def _check(report: Report, name: str, value: float, bar: float, options: Options) -> None:
    report.check(name, value, f"<= {bar:g}", None if options.quick else value <= bar)


def _in_own_process(size: CatalogueSize, tags: int) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (size, tags))


def _measure(size: CatalogueSize, tags: int) -> Measured:
    with gateway_of(catalogue_of(size.items, tags)) as (gateway, bus):
        changes = Changes(bus, size.items, tags, CHANGES_PER_S)
        changes.start()
        _feeds(gateway, size.block_s / 4)  # warm-up
        took: dict[bool, list[float]] = {False: [], True: []}
        for block in range(2 * size.blocks):
            changing = bool(block % 2)
            (changes.on.set if changing else changes.on.clear)()
            took[changing] += _feeds(gateway, size.block_s)
        changes.over.set()
        memory_mb = psutil.Process().memory_info().rss / 1e6
        return Measured(memory_mb, np.array(took[False]), np.array(took[True]), changes.sent)


def _feeds(gateway: Gateway, seconds: float) -> list[float]:
    """Latencies in ms of feeds that are asked one after another."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while (began := time.perf_counter()) and time.monotonic() < end:
        gateway.surfaces.answer(FeedRequest(user_id=f"u{len(took) % USERS}", k=10))
        took.append(1_000 * (time.perf_counter() - began))
    return took
