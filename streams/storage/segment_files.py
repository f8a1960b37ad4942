"""Files of the log on disk: listings, locks and atomic writes.

    tail/<topic id>/<partition>/<offset>.arrow   write-ahead: one file per batch, written at once
    tail/<topic id>/<partition>/<offset>.filed   all batches up to this one are in Parquet
    tail/<topic id>/<partition>/filing           a flush is running or was cut short
    parquet/hour=<yyyymmddhh>/<partition>-<first>-<last>-<revision><stage>-<topic id>.parquet

Knows folders and names (`streams.storage.segment_names`). Does not know rows. Polars, duckdb and
Spark read everything below `parquet` directly, with `hour` (UTC) as the partition column; they
skip what lies elsewhere and names that begin with a dot.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa

from streams.storage.segment_names import (
    LogPartition,
    PartitionFiles,
    SealedFile,
    WriteAheadFiles,
    current_files,
)
from streams.telemetry import set_aside

_LISTING_ATTEMPTS = 20
DAMAGED = ".damaged"  # ending of a write-ahead file that cannot be read
_WRITE_AHEAD_NAME = re.compile(r"(\d{20})\.(arrow|filed)", re.ASCII)
_HOUR_NAME = re.compile(r"hour=\d{10}", re.ASCII)
_STALE_S = 3_600.0  # age at which a killed writer's temporary file is removed


class UnsupportedLayoutError(RuntimeError):
    """An earlier version wrote the folder in a layout that this version cannot read."""


class SegmentFiles:
    """The files under one folder."""

    def __init__(self, directory: Path, *, sync: bool = False) -> None:
        """Raises UnsupportedLayoutError if an earlier version's files would be left unread."""
        if old := next(directory.glob("*/[0-9][0-9][0-9][0-9]/tail"), None):
            raise UnsupportedLayoutError(
                f"{old.parent.parent} has an earlier layout, which this version does not read: "
                f"move {directory} away and load its events again"
            )
        self.directory = directory
        self.parquet = directory / "parquet"
        self._sync = sync

    # listing

    def path(self, file: SealedFile) -> Path:
        return self.parquet / f"hour={file.hour}" / file.name

    def write_ahead_folder(self, partition: LogPartition) -> Path:
        topic_id = quote(partition.topic_id, safe="")
        return self.directory / "tail" / topic_id / f"{partition.partition:04d}"

    def write_ahead(self, partition: LogPartition) -> WriteAheadFiles:
        folder = self.write_ahead_folder(partition)
        offsets: dict[str, list[int]] = {"arrow": [], "filed": []}
        interrupted = False
        for name in _names(folder):
            if found := _WRITE_AHEAD_NAME.fullmatch(name):
                offsets[found[2]].append(int(found[1]))
            elif name == "filing":
                interrupted = True
            elif name[0] != "." and not name.endswith(DAMAGED):
                set_aside("foreign_file", folder / name, "no writer of this log names a file so")
        last = max(offsets["filed"], default=-1)
        return WriteAheadFiles(folder, last, sorted(offsets["arrow"]), interrupted)

    def write_ahead_partitions(self) -> list[LogPartition]:
        return [
            LogPartition(unquote(path.parent.name), int(path.name))
            for path in (self.directory / "tail").glob("*/[0-9]*")
            if path.name.isdecimal() and path.is_dir()
        ]

    def listing(self, partition: LogPartition) -> PartitionFiles:
        return self.listings([partition])[partition]

    def listings(
        self, partitions: Iterable[LogPartition] | None = None, since_hour: int = 0
    ) -> dict[LogPartition, PartitionFiles]:
        """The current files by partition, without Parquet of hours before `since_hour`.

        Write-ahead files are listed first: what is flushed meanwhile then shows up in Parquet.
        """
        wanted = self.write_ahead_partitions() if partitions is None else partitions
        write_ahead = {partition: self.write_ahead(partition) for partition in wanted}
        sealed = self.sealed_files(since_hour)
        if partitions is None:
            only_sealed = sealed.keys() - write_ahead.keys()
            write_ahead |= {partition: self.write_ahead(partition) for partition in only_sealed}
        return {
            partition: PartitionFiles.of(sealed.get(partition, []), write_ahead[partition])
            for partition in sorted(write_ahead)
        }

    def sealed_files(self, since_hour: int = 0) -> dict[LogPartition, list[SealedFile]]:
        """The current Parquet files by partition and in offset order.

        Listed until two listings agree: a single listing may miss both a file that is merged
        away meanwhile and the file that replaces it.
        """
        found = self.all_sealed_files(since_hour)
        for _ in range(_LISTING_ATTEMPTS):
            again = self.all_sealed_files(since_hour)
            if again == found:
                break
            found = again
        return current_files(found)

    def all_sealed_files(self, since_hour: int = 0) -> set[SealedFile]:
        """All Parquet files of hours from `since_hour` on, including leftovers.

        A foreign file is set aside.
        """
        found: set[SealedFile] = set()
        for hour, folder in self.hours():
            for name in _names(folder) if hour >= since_hour else ():
                if name[0] == ".":
                    continue
                if file := SealedFile.parse(hour, name):
                    found.add(file)
                else:
                    set_aside("foreign_file", folder / name, "no writer of this log names one so")
        return found

    def hours(self) -> list[tuple[int, Path]]:
        """The folders of the hours, oldest first."""
        names = sorted(name for name in _names(self.parquet) if _HOUR_NAME.fullmatch(name))
        return [(int(name[5:]), self.parquet / name) for name in names]

    # writing

    def write_atomically(self, path: Path, content: bytes | pa.Buffer) -> None:
        """Writes a whole file, or raises OSError and leaves nothing behind."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                if self._sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if self._sync:
            _sync_folder(path.parent)

    def mark_flush_started(self, write_ahead: WriteAheadFiles) -> None:
        self.write_atomically(write_ahead.flush_mark, b"")

    def mark_sealed(self, write_ahead: WriteAheadFiles, sealed_to: int) -> None:
        """Records that all up to `sealed_to` is in Parquet, and removes the write-ahead copies."""
        if sealed_to > write_ahead.sealed_to:
            self.write_atomically(write_ahead.sealed_mark(sealed_to), b"")
            write_ahead.sealed_mark(write_ahead.sealed_to).unlink(missing_ok=True)
        for offset in write_ahead.offsets:
            if offset <= sealed_to:
                write_ahead.path(offset).unlink(missing_ok=True)
        write_ahead.flush_mark.unlink(missing_ok=True)

    def keep_damaged(self, path: Path) -> None:
        """Renames a write-ahead file that cannot be read, so that sealing does not remove it."""
        with suppress(FileNotFoundError):
            path.rename(path.with_name(path.name + DAMAGED))

    def add_sealed(self, file: SealedFile, content: pa.Buffer) -> None:
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.write_atomically(path, content)
        except FileNotFoundError:  # `remove_empty_hours` has just removed the folder
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write_atomically(path, content)

    def remove(self, files: Iterable[SealedFile]) -> None:
        for file in files:
            self.path(file).unlink(missing_ok=True)

    def remove_empty_hours(self, before: int) -> None:
        for hour, folder in self.hours():
            if hour < before:
                with suppress(OSError):  # a file was added meanwhile
                    folder.rmdir()

    def remove_leftovers(self) -> None:
        """Removes what crashes left behind. Hold `rewrite_lock`."""
        found = self.all_sealed_files()  # once: a file that is added from now on must stay
        self.remove(found - {file for files in current_files(found).values() for file in files})
        folders = [folder for _, folder in self.hours()]
        folders += map(self.write_ahead_folder, self.write_ahead_partitions())
        for folder in folders:
            for name in _names(folder):
                if name[0] == "." and name != ".lock":
                    _remove_stale(folder / name)

    @contextmanager
    def rewrite_lock(self) -> Iterator[None]:
        """Held while Parquet files are replaced or removed; adding one needs only the lock of
        its write-ahead folder."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.directory):
            yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Excludes other processes that write into the folder. The kernel releases it on a crash."""
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_stale(path: Path) -> None:
    with suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > _STALE_S:
            path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
