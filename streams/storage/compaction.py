"""Upkeep of segments beside their writers and readers: small files merged, old hours dropped.

Knows files, hours and row counts. Does not know what is kept for how long (the settings
say) nor what the rows say. Every step is one file that appears and some that go, under
the one lock that rewriters share: a step that a crash cut short counts nothing twice,
the next call goes on where it was, and appends never wait for it.

What was dropped is told: `begins_at_ms` is where a rebuild from these files begins.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from streams.contract.clock import DAY_MS, Clock
from streams.storage.segment_files import MERGED, Filed, Place, Tail, hour_of, start_of
from streams.storage.segments import Segments

_log = logging.getLogger(__name__)

FILE_ROWS = 1_000_000  # no merging beyond this: about 0.5 GB while it lasts
OPEN_FILES = 32  # an hour that is still being written is merged when so many files wait in it
TAIL_AGE_S = 3_600.0  # a batch that waited longer than this is filed, however quiet its log

Progress = Callable[[float, str], None]
"""Called with the share done in [0, 1] and what is being done."""


@dataclass(frozen=True)
class Compacted:
    """What one call of `compact` did."""

    files: int  # that were merged or sorted
    into: int  # files
    rows: int


@dataclass(frozen=True)
class Extent:
    """What lies there. Times are ms of the last of `Segments.times`; None where nothing does."""

    rows: int
    oldest_ms: int | None
    newest_ms: int | None
    hours: int
    files: int  # Parquet
    waiting: int  # batches in the tail, which Parquet's readers do not see yet
    size_bytes: int
    places: list[Place]
    begins_at_ms: int | None  # what was here before this has been dropped


def compact(
    segments: Segments,
    now_ms: int | None = None,
    progress: Progress = lambda _share, _what: None,
) -> Compacted:
    """Merges small files within their hour and sorts them by the last of `segments.times`.

    An hour is merged whole once it is over: when its partition has gone on to another
    one or, with `now_ms`, by the clock. Memory: FILE_ROWS rows, twice.
    """
    with segments.files.rewriting():
        segments.files.sweep()
    pieces = list(_pieces(segments, None if now_ms is None else hour_of(now_ms)))
    files = rows = into = 0
    for done, piece in enumerate(pieces, start=1):
        merged = _merge(segments, piece)
        if merged is not None:
            files, into, rows = files + len(piece), into + 1, rows + merged
        progress(done / len(pieces), f"{rows:,} rows")
    return Compacted(files, into, rows)


def gather_old(segments: Segments, age_s: float = TAIL_AGE_S) -> None:
    """Files the tails whose oldest batch has waited longer than `age_s`."""
    segments.gather(unless=lambda tail: not tail.interrupted and _age_s(tail) < age_s)


def retain(segments: Segments, before_ms: int) -> int:
    """Drops the hours that were over at `before_ms`; returns how many rows that were.

    Whole hours only, so nothing as young as `before_ms` goes. A dropped batch that is
    delivered again stays dropped.
    """
    gather_old(segments)
    before = hour_of(before_ms)
    with segments.files.rewriting():
        segments.files.sweep()
        doomed = [file for file in segments.files.every_file() if file.hour < before]
        if not doomed:
            return 0
        rows = sum(_rows(segments, file) for file in doomed)
        begins = max(start_of(before), begins_at_ms(segments.directory) or 0)
        content = json.dumps({"begins_at_ms": begins}).encode()
        segments.files.put(_note(segments.directory), content)
        segments.files.remove(doomed)
        segments.files.remove_empty_hours(before)
    return rows


def begins_at_ms(directory: Path) -> int | None:
    """What is older than this is not, or not wholly, there; None: everything is."""
    try:
        return int(json.loads(_note(directory).read_bytes())["begins_at_ms"])
    except FileNotFoundError:
        return None


def extent(segments: Segments) -> Extent:
    """Counts what lies there. Reads one column, and the tail."""
    listings = segments.files.listings()
    filed = [file for listing in listings.values() for file in listing.filed]
    paths = [segments.files.path(file) for file in filed]
    paths += [each.tail.path(n) for each in listings.values() for n in each.batches]
    at = pl.col(segments.times[-1])
    counts = pl.len(), at.min().alias("oldest"), at.max().alias("newest")
    rows, oldest, newest = segments.consistently(lambda scan: scan.select(counts).collect().row(0))
    return Extent(
        rows=rows,
        oldest_ms=oldest,
        newest_ms=newest,
        hours=len({file.hour for file in filed}),
        files=len(filed),
        waiting=sum(len(listing.batches) for listing in listings.values()),
        size_bytes=sum(path.stat().st_size for path in paths if path.exists()),
        places=[place for place, listing in listings.items() if listing.filed or listing.batches],
        begins_at_ms=begins_at_ms(segments.directory),
    )


def keep(
    parts: Sequence[Segments],
    clock: Clock,
    stop: threading.Event,
    *,
    retention_days: int | None = None,
    every_s: float = 300.0,
) -> None:
    """Compacts and retains now and then until `stop` is set.

    A full disk, or a file that somebody holds, is told and tried again next time: what
    lies there stays whole meanwhile.
    """
    while not stop.wait(every_s):
        for segments in parts:
            try:
                _round(segments, clock.now_ms(), retention_days)
            except OSError as error:
                _log.warning("%s: upkeep waits: %s", segments.directory, error)


def _round(segments: Segments, now_ms: int, retention_days: int | None) -> None:
    started = time.perf_counter()
    gather_old(segments)
    dropped = 0
    if retention_days is not None:
        dropped = retain(segments, now_ms - retention_days * DAY_MS)
    done = compact(segments, now_ms)
    if dropped or done.files:
        _log.info(
            "%s: %d files merged into %d (%d rows), %d rows dropped, %.1f s",
            segments.directory, done.files, done.into, done.rows, dropped,
            time.perf_counter() - started,
        )  # fmt: skip


def _pieces(segments: Segments, now_hour: int | None) -> Iterator[list[Filed]]:
    """Neighbouring files that become one. A file alone is sorted, unless it is already."""
    for files in segments.files.filed().values():
        runs = [list(run) for _, run in groupby(files, key=lambda file: file.hour)]
        for number, run in enumerate(runs):
            over = number < len(runs) - 1 or (now_hour is not None and run[0].hour < now_hour)
            gathered = [file for file in run if file.stage != MERGED]
            if over and gathered:
                yield from _packed(segments, run)
            elif _are_many(segments, gathered):
                yield from _packed(segments, gathered)


def _are_many(segments: Segments, files: list[Filed]) -> bool:
    return len(files) >= OPEN_FILES or sum(_rows(segments, f) for f in files) >= FILE_ROWS


def _packed(segments: Segments, run: list[Filed]) -> Iterator[list[Filed]]:
    piece: list[Filed] = []
    held = 0
    for file in run:
        rows = _rows(segments, file)
        if piece and held + rows > FILE_ROWS:
            yield from _unless_done(piece)
            piece, held = [], 0
        piece.append(file)
        held += rows
    yield from _unless_done(piece)


def _unless_done(piece: list[Filed]) -> Iterator[list[Filed]]:
    if len(piece) > 1 or piece[0].stage != MERGED:
        yield piece


def _merge(segments: Segments, piece: list[Filed]) -> int | None:
    """The rows of the merged file; None when another process has replaced what it was to be of."""
    with segments.files.rewriting():
        if not all(segments.files.path(file).exists() for file in piece):
            return None
        table = pa.concat_tables([segments.read_file(file) for file in piece])
        order = [segments.times[-1], "offset", "row"]
        table = table.sort_by([(name, "ascending") for name in order])
        revision = max(file.revision for file in piece) + 1
        merged = replace(piece[0], last=piece[-1].last, revision=revision, stage=MERGED)
        segments.write_file(merged, table)
        segments.files.remove(piece)
        return int(table.num_rows)


def _rows(segments: Segments, file: Filed) -> int:
    """0 for a file that has gone meanwhile."""
    try:
        return int(pq.read_metadata(segments.files.path(file)).num_rows)
    except FileNotFoundError:
        return 0


def _age_s(tail: Tail) -> float:
    return time.time() - tail.path(tail.batches[0]).stat().st_mtime if tail.batches else 0.0


def _note(directory: Path) -> Path:
    return directory / "dropped.json"
