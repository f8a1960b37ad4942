"""Read stored batches: lazily as rows, or batch by batch as they were appended.

Knows Parquet and write-ahead files (`streams.storage.segment_files`) and Arrow tables. Does not
know writers (`streams.storage.segments`).

A file that cannot be read (torn by a full disk or another program) is set aside: it is named in a
log line, it stays where it is, and everything beside it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streams.bus.contract import Stamp
from streams.contract.schema import conform, from_ipc
from streams.storage.segment_files import SegmentFiles
from streams.storage.segment_names import LogPartition, SealedFile, WriteAheadFiles, hour_of
from streams.storage.segment_rows import POSITION, split_by_offset, with_positions
from streams.telemetry import set_aside

_READ_ATTEMPTS = 20
_MAX_CHECKED = 20_000
_MOST_BYTES = 1 << 34  # no column of a file takes as much
_UNREADABLE = (pa.ArrowException, ValueError, OSError)  # what torn bytes raise

T = TypeVar("T")


class SegmentReader:
    """Batches of `schema` under one folder. Safe beside writers in any thread or process."""

    def __init__(
        self, directory: Path, schema: pa.Schema, *, times: Sequence[str], sync: bool = False
    ) -> None:
        """`times`: columns in ms, arrival first. The latest of them determines a batch's hour,
        compaction sorts by the last one, and a row is erased if any of them is old enough."""
        self.directory = directory
        self.schema = schema
        self.full_schema = pa.schema([*schema, *POSITION])
        self.times = tuple(times)
        self.files = SegmentFiles(directory, sync=sync)
        self._whole: set[Path] = set()  # files are immutable, so each is checked once
        self._damaged: set[Path] = set()

    def scan(self, since_ms: int | None = None) -> pl.LazyFrame:
        """Every row with its position. Reads Parquet lazily and write-ahead files at once.

        With `since_ms`, hours without a row as new as that are skipped; other hours come whole.
        Compaction may remove a file between the call and `collect`, which then raises
        FileNotFoundError: use `read_consistently`, or call again.
        """
        sealed: list[Path] = []
        pending: list[pa.Table] = []
        since_hour = 0 if since_ms is None else hour_of(since_ms)
        for partition, listing in self.files.listings(since_hour=since_hour).items():
            sealed += map(self.files.path, filter(self.is_readable, listing.sealed))
            pending += [
                self._positioned(partition, listing.write_ahead, n) for n in listing.pending
            ]
        frame = pl.DataFrame(pa.concat_tables([self.full_schema.empty_table(), *pending]))
        if not sealed:
            return frame.lazy()
        lazy = pl.scan_parquet(
            sealed,
            missing_columns="insert",
            extra_columns="ignore",
            schema=frame.schema,
            hive_partitioning=False,
        )
        return pl.concat([lazy, frame.lazy()])

    def read_consistently(
        self, read: Callable[[pl.LazyFrame], T], since_ms: int | None = None
    ) -> T:
        """`read(scan(since_ms))`, repeated if compaction removed a file meanwhile."""
        for _ in range(_READ_ATTEMPTS):
            try:
                return read(self.scan(since_ms))
            except FileNotFoundError:
                continue
            except (pl.exceptions.PolarsError, OSError):
                if not self._find_damaged(since_ms):
                    raise
        raise self._rewritten_too_often()

    def batches(self) -> Iterator[tuple[Stamp, pa.Table]]:
        """Every batch by partition, in offset order. Memory: one file."""
        for partition in sorted(self.files.listings()):
            yield from self._batches_of(partition)

    def last_offset(self, topic_id: str, partition: int) -> int:
        """The largest offset that was ever stored, -1 if none was."""
        log_partition = LogPartition(topic_id, partition)
        write_ahead = self.files.write_ahead(log_partition)
        if write_ahead.last >= 0 and not write_ahead.interrupted:
            return write_ahead.last
        sealed = self.files.listing(log_partition).sealed
        return max([write_ahead.last, *(file.last for file in sealed)])

    def last_offsets(self) -> dict[LogPartition, int]:
        """The largest offset that was ever stored, by partition."""
        return {partition: self.last_offset(*partition) for partition in self.files.listings()}

    def read_file(self, file: SealedFile) -> pa.Table:
        """A Parquet file's rows with their positions; none if it cannot be read."""
        try:
            table = pq.read_table(self.files.path(file), partitioning=None)
            return conform(table, self.full_schema)
        except _UNREADABLE as error:
            self._set_aside(self.files.path(file), error)
            return self.full_schema.empty_table()

    def is_readable(self, file: SealedFile) -> bool:
        """False for a file that was found damaged, or that is no whole Parquet file.

        Reads the footer only: the first full read finds damage inside.
        """
        path = self.files.path(file)
        if path in self._damaged or path in self._whole:
            return path in self._whole
        try:
            pq.read_metadata(path)
        except FileNotFoundError:
            return True  # compaction removed it: the reader lists again
        except _UNREADABLE as error:
            self._set_aside(path, error)
            return False
        if len(self._whole) >= _MAX_CHECKED:
            self._whole.clear()  # most of them have been merged away
        self._whole.add(path)
        return True

    def _find_damaged(self, since_ms: int | None) -> bool:
        """Reads every Parquet file whole; whether any was newly found damaged."""
        known = len(self._damaged)
        since_hour = 0 if since_ms is None else hour_of(since_ms)
        for files in self.files.sealed_files(since_hour).values():
            for file in filter(self.is_readable, files):
                with suppress(FileNotFoundError):
                    self.read_file(file)
        return len(self._damaged) > known

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Remembers a damaged file. Raises `error` if the file itself may be whole."""
        if _may_be_whole(error):
            raise error
        self._damaged.add(path)
        self._whole.discard(path)
        set_aside("damaged_file", path, error)

    def _batches_of(self, partition: LogPartition) -> Iterator[tuple[Stamp, pa.Table]]:
        done, attempts = -1, 0
        while True:
            try:
                for table, last in self._tables_after(partition, done):
                    yield from split_by_offset(partition, table, self.schema)
                    done, attempts = last, 0
                return
            except FileNotFoundError:
                attempts += 1
                if attempts > _READ_ATTEMPTS:
                    raise self._rewritten_too_often() from None

    def _tables_after(self, partition: LogPartition, done: int) -> Iterator[tuple[pa.Table, int]]:
        """The rows beyond the offset `done`, file by file, each with its last offset."""
        listing = self.files.listing(partition)
        for file in listing.sealed:
            if file.last > done and self.is_readable(file):
                table = self.read_file(file)
                yield table.filter(pc.greater(table["offset"], done)), file.last
        for offset in listing.pending:
            if offset > done:
                yield self._positioned(partition, listing.write_ahead, offset), offset

    def _write_ahead_batch(self, write_ahead: WriteAheadFiles, offset: int) -> pa.Table:
        """The batch, without rows if its file cannot be read."""
        path = write_ahead.path(offset)
        try:
            return from_ipc(path.read_bytes(), self.schema)
        except _UNREADABLE as error:
            self._set_aside(path, error)
            return self.schema.empty_table()

    def _positioned(
        self, partition: LogPartition, write_ahead: WriteAheadFiles, offset: int
    ) -> pa.Table:
        batch = self._write_ahead_batch(write_ahead, offset)
        return with_positions(partition, [offset], [batch], self.full_schema)

    def _rewritten_too_often(self) -> RuntimeError:
        return RuntimeError(
            f"{self.directory} was rewritten during each of {_READ_ATTEMPTS} reads: "
            "stop its writers"
        )


def _may_be_whole(error: Exception) -> bool:
    """Whether the system failed: removed meanwhile, too many open files, a full memory.

    Torn bytes may state a size of exabytes, and the allocation of it fails.
    """
    if isinstance(error, MemoryError):
        stated = re.search(r"size (\d+)", str(error))
        return stated is None or int(stated[1]) <= _MOST_BYTES
    return getattr(error, "errno", None) is not None
