"""Compaction and retention: merge small files, drop old hours, beside writers and readers.

Knows files, hours and row counts. Does not know how long rows are kept (a setting) nor what they
mean. Each step adds one file and removes others under the lock that rewriters share. After a
crash no row counts twice and the next call continues. Appends never wait for it.

`begins_at_ms` states what was dropped: a rebuild from these files starts there.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from streams.contract.clock import DAY_MS, Clock
from streams.progress import ProgressCallback
from streams.storage.segment_names import (
    COMPACTED,
    LogPartition,
    SealedFile,
    WriteAheadFiles,
    hour_of,
    hour_start_ms,
)
from streams.storage.segments import Segments
from streams.telemetry import set_aside

_log = logging.getLogger(__name__)

FILE_ROWS = 1_000_000  # the most rows of a merged file: about 0.5 GB of memory during the merge
OPEN_FILES = 32  # files that trigger a merge within an hour that is still written
FLUSH_AGE_S = 3_600.0  # age of a write-ahead file that triggers a flush


@dataclass(frozen=True)
class CompactionResult:
    """What one call of `compact` did."""

    files: int  # merged or sorted
    into: int  # files
    rows: int


@dataclass(frozen=True)
class LogStats:
    """Contents of a log. Times are ms of the last of `Segments.times`; None if it is empty."""

    rows: int
    oldest_ms: int | None
    newest_ms: int | None
    hours: int
    files: int  # Parquet
    pending_batches: int  # write-ahead: readers of Parquet alone do not see them yet
    size_bytes: int
    partitions: list[LogPartition]
    begins_at_ms: int | None  # rows before this may have been dropped


def compact(
    segments: Segments,
    now_ms: int | None = None,
    progress: ProgressCallback = lambda _share, _what: None,
) -> CompactionResult:
    """Merges small files within their hour and sorts them by the last of `segments.times`.

    An hour is merged whole once it is over: when its partition has reached a later hour or,
    with `now_ms`, by the clock. Memory: twice FILE_ROWS rows.
    """
    with segments.files.rewrite_lock():
        segments.files.remove_leftovers()
    groups = list(_merge_groups(segments, None if now_ms is None else hour_of(now_ms)))
    files = rows = into = 0
    for done, group in enumerate(groups, start=1):
        merged = _merge(segments, group)
        if merged is not None:
            files, into, rows = files + len(group), into + 1, rows + merged
        progress(done / len(groups), f"{rows:,} rows")
    return CompactionResult(files, into, rows)


def flush_old(segments: Segments, age_s: float = FLUSH_AGE_S) -> None:
    """Flushes the partitions whose oldest write-ahead file is older than `age_s`."""
    segments.flush(unless=lambda files: not files.interrupted and _age_s(files) < age_s)


def retain(segments: Segments, before_ms: int) -> int:
    """Drops the hours that were over at `before_ms`; returns the number of rows dropped.

    Drops whole hours only, so rows from `before_ms` on stay. A dropped batch that is delivered
    again stays dropped.
    """
    flush_old(segments)
    before = hour_of(before_ms)
    with segments.files.rewrite_lock():
        segments.files.remove_leftovers()
        old = [file for file in segments.files.all_sealed_files() if file.hour < before]
        if not old:
            return 0
        rows = sum(_rows(segments, file) for file in old)
        begins = max(hour_start_ms(before), begins_at_ms(segments.directory) or 0)
        content = json.dumps({"begins_at_ms": begins}).encode()
        segments.files.write_atomically(_dropped_file(segments.directory), content)
        segments.files.remove(old)
        segments.files.remove_empty_hours(before)
    return rows


def begins_at_ms(directory: Path) -> int | None:
    """Rows older than this may have been dropped; None: none were."""
    path = _dropped_file(directory)
    try:
        return int(json.loads(path.read_bytes())["begins_at_ms"])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        set_aside("damaged_file", path, error)
        return None


def log_stats(segments: Segments) -> LogStats:
    """Counts the contents. Reads one column of Parquet, and the write-ahead files."""
    listings = segments.files.listings()
    sealed = [file for listing in listings.values() for file in listing.sealed]
    paths = [segments.files.path(file) for file in sealed]
    paths += [each.write_ahead.path(n) for each in listings.values() for n in each.pending]
    at = pl.col(segments.times[-1])
    counts = pl.len(), at.min().alias("oldest"), at.max().alias("newest")
    rows, oldest, newest = segments.read_consistently(
        lambda scan: scan.select(counts).collect().row(0)
    )
    return LogStats(
        rows=rows,
        oldest_ms=oldest,
        newest_ms=newest,
        hours=len({file.hour for file in sealed}),
        files=len(sealed),
        pending_batches=sum(len(listing.pending) for listing in listings.values()),
        size_bytes=sum(path.stat().st_size for path in paths if path.exists()),
        partitions=[key for key, listing in listings.items() if listing.sealed or listing.pending],
        begins_at_ms=begins_at_ms(segments.directory),
    )


def run_compaction(
    logs: Sequence[Segments],
    clock: Clock,
    stop: threading.Event,
    *,
    retention_days: int | None = None,
    every_s: float = 300.0,
) -> None:
    """Compacts and retains periodically until `stop` is set.

    An error (a full disk, a locked file) is logged and the work is retried in the next round;
    the stored files stay whole.
    """
    while not stop.wait(every_s):
        for segments in logs:
            try:
                _run_once(segments, clock.now_ms(), retention_days)
            except (OSError, pa.ArrowException, RuntimeError) as error:
                _log.warning("%s: compaction failed, will retry: %s", segments.directory, error)
        # The peak of a merge is not needed again for minutes: return it to the system.
        pa.default_memory_pool().release_unused()


def _run_once(segments: Segments, now_ms: int, retention_days: int | None) -> None:
    started = time.perf_counter()
    flush_old(segments)
    dropped = 0
    if retention_days is not None:
        dropped = retain(segments, now_ms - retention_days * DAY_MS)
    done = compact(segments, now_ms)
    if dropped or done.files:
        _log.info(
            "%s: %d files merged into %d (%d rows), %d rows dropped, %.1f s",
            segments.directory,
            done.files,
            done.into,
            done.rows,
            dropped,
            time.perf_counter() - started,
        )


def _merge_groups(segments: Segments, now_hour: int | None) -> Iterator[list[SealedFile]]:
    """Neighbouring files that become one. A group of one file sorts it."""
    for files in segments.files.sealed_files().values():
        # A damaged file is never merged: what spans it would count as its replacement.
        keyed = groupby(files, key=lambda file: (file.hour, segments.is_readable(file)))
        runs = [list(run) for (_, readable), run in keyed if readable]
        for run in runs:
            hour = run[0].hour
            over = hour < runs[-1][0].hour or (now_hour is not None and hour < now_hour)
            flushed = [file for file in run if file.stage != COMPACTED]
            if over and flushed:
                yield from _bounded_groups(segments, run)
            elif _are_many(segments, flushed):
                yield from _bounded_groups(segments, flushed)


def _are_many(segments: Segments, files: list[SealedFile]) -> bool:
    return len(files) >= OPEN_FILES or sum(_rows(segments, f) for f in files) >= FILE_ROWS


def _bounded_groups(segments: Segments, run: list[SealedFile]) -> Iterator[list[SealedFile]]:
    """Splits a run into groups of at most FILE_ROWS rows, without single compacted files."""
    groups: list[list[SealedFile]] = [[]]
    held = 0
    for file in run:
        rows = _rows(segments, file)
        if groups[-1] and held + rows > FILE_ROWS:
            groups.append([])
            held = 0
        groups[-1].append(file)
        held += rows
    for group in groups:
        if len(group) > 1 or group[0].stage != COMPACTED:
            yield group


def _merge(segments: Segments, group: list[SealedFile]) -> int | None:
    """The merged file's rows; None if another process has replaced one of the files."""
    with segments.files.rewrite_lock():
        if not all(segments.files.path(file).exists() for file in group):
            return None
        tables = [segments.read_file(file) for file in group]
        if not all(map(segments.is_readable, group)):
            return None  # one was found damaged: the next call merges around it
        table = pa.concat_tables(tables)
        order = [segments.times[-1], "offset", "row"]
        table = table.sort_by([(name, "ascending") for name in order])
        revision = max(file.revision for file in group) + 1
        merged = replace(group[0], last=group[-1].last, revision=revision, stage=COMPACTED)
        segments.write_file(merged, table)
        segments.files.remove(group)
        return int(table.num_rows)


def _rows(segments: Segments, file: SealedFile) -> int:
    """0 if the file has been removed meanwhile, or cannot be read."""
    try:
        if segments.is_readable(file):
            return int(pq.read_metadata(segments.files.path(file)).num_rows)
    except FileNotFoundError:
        pass
    return 0


def _age_s(files: WriteAheadFiles) -> float:
    return time.time() - files.path(files.offsets[0]).stat().st_mtime if files.offsets else 0.0


def _dropped_file(directory: Path) -> Path:
    return directory / "dropped.json"
