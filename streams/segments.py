"""Durable batches on disk: each stamp once, small files gathered into larger ones.

Knows stamps, Arrow tables, files and erased users. Does not know what the rows say.

    <epoch>/<partition>/tail/<offset>.arrow       one file per batch, written at once
    <epoch>/<partition>/<first>-<last>.parquet    many batches, after `gather`
    erased.json                                   users to forget, and until when

A file is written beside its place and renamed into it, so a reader sees whole files
only. A batch is the same file whoever writes it, so a second delivery, a zombie or a
replay changes nothing. A new epoch is a new folder: a broker whose offsets start again
overwrites nothing. What a Parquet file's range covers is never read from the tail or
from a smaller file, so a crash between the rename and the removal counts nothing twice.
Files survive the process being killed; set `sync` to survive a power failure as well.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streams.bus import Stamp
from streams.schema import conform, from_ipc, to_ipc

POSITION = pa.schema(
    [
        pa.field("epoch", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),  # within the batch
    ]
)

GATHER_ROWS = 200_000  # a tail this long becomes one Parquet file
GATHER_FILES = 256  # and so does one of this many files, so that a quiet log stays quick to read
MERGE_FACTOR = 4  # a Parquet file is merged with a newer one at least a quarter as long
FILE_ROWS = 2_000_000  # no merging beyond this

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class _File:
    first: int
    last: int
    path: Path

    @staticmethod
    def parse(path: Path) -> _File:
        first, _, last = path.stem.partition("-")
        return _File(int(first), int(last), path)


@dataclass
class _Open:
    """What this process knows of one partition's folder."""

    last: int  # the largest offset that is on disk
    tail_rows: int
    tail_files: int


class Segments:
    """Batches of `schema` under one folder. Safe for several threads and processes."""

    def __init__(
        self, directory: Path, schema: pa.Schema, *, erased_by: Sequence[str], sync: bool = False
    ) -> None:
        """`erased_by`: time columns; a row is an erased user's if any of them is old enough."""
        self.directory = directory
        self.schema = schema
        self.full_schema = pa.schema([*schema, *POSITION])
        self._erased_by = tuple(erased_by)
        self._sync = sync
        self._open: dict[tuple[str, int], _Open] = {}
        self._erased: dict[str, int] = {}
        self._erased_version = (0, 0)
        self._lock = threading.Lock()

    # writing

    def append(self, stamp: Stamp, table: pa.Table, payload: bytes | None = None) -> bool:
        """Makes a batch durable; False when its stamp is on disk. `payload`: `table` as IPC."""
        folder = self._folder(stamp.epoch, stamp.partition)
        with self._lock, _locked(folder):
            known = self._known(stamp, folder)
            if stamp.offset <= known.last:
                return False
            kept = self.without_erased(table)
            if payload is None or kept.num_rows != table.num_rows:
                payload = to_ipc(_one_batch(conform(kept, self.schema)))
            self._put(folder / "tail" / f"{stamp.offset:020d}.arrow", payload)
            known.last = stamp.offset
            known.tail_rows += kept.num_rows
            known.tail_files += 1
            if known.tail_rows >= GATHER_ROWS or known.tail_files >= GATHER_FILES:
                self._gather(folder, known)
            return True

    def gather(self) -> None:
        """Turns every tail into Parquet now, for readers that know nothing but Parquet."""
        for epoch, partition, folder in self._partitions():
            with self._lock, _locked(folder):
                self._gather(folder, self._known(Stamp(epoch, partition, 0), folder))

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's rows up to `at_ms` from every file, and from later appends.

        Returns the number of rows removed.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._lock, _locked(self.directory):
            erased = self._read_erased()
            erased[user_id] = max(at_ms, erased.get(user_id, at_ms))
            self._put(self.directory / "erased.json", json.dumps(erased).encode())
        removed = 0
        for _, _, folder in self._partitions():
            with self._lock, _locked(folder):
                removed += sum(self._rewrite(path) for path in _every_file(folder))
        return removed

    def without_erased(self, table: pa.Table) -> pa.Table:
        """The rows that no tombstone covers."""
        erased: Mapping[str, int] = self._read_erased()
        if not erased:
            return table
        until = pc.index_in(table["user_id"], pa.array(list(erased), pa.string()))
        limits = pa.array(list(erased.values()), pa.int64()).take(until.combine_chunks())
        gone = pa.array(np.zeros(table.num_rows, dtype=bool))
        for column in self._erased_by:
            gone = pc.or_(gone, pc.fill_null(pc.less_equal(table[column], limits), False))
        return table.filter(pc.invert(gone))

    # reading

    def scan(self) -> pl.LazyFrame:
        """Every row with its position. Parquet is read lazily, the tail at once.

        A small file may be merged away between the call and `collect`, which then
        raises FileNotFoundError: use `consistently`, or call again.
        """
        filed: list[Path] = []
        tails: list[pa.Table] = []
        for epoch, partition, folder in self._partitions():
            files, tail = _listing(folder)
            filed += [file.path for file in files]
            tails += [self._read_tail(epoch, partition, path) for path in tail]
        tail_frame = pl.DataFrame(pa.concat_tables([self.full_schema.empty_table(), *tails]))
        if not filed:
            return tail_frame.lazy()
        lazy = pl.scan_parquet(filed, missing_columns="insert", extra_columns="ignore",
                               schema=tail_frame.schema, hive_partitioning=False)  # fmt: skip
        return pl.concat([lazy, tail_frame.lazy()])

    def consistently(self, read: Callable[[pl.LazyFrame], T]) -> T:
        """`read(scan())`, again when a file was merged away under it."""
        for _ in range(20):
            try:
                return read(self.scan())
            except FileNotFoundError:
                continue
        raise RuntimeError(f"{self.directory} is being rewritten without pause: stop its writers")

    def batches(self) -> Iterator[tuple[Stamp, pa.Table]]:
        """Every batch by epoch and partition, in offset order; one file in memory at a time."""
        for epoch, partition, folder in self._partitions():
            done = -1
            while (step := self._next_file(epoch, partition, folder, done)) is not None:
                table, done = step
                yield from _by_offset(epoch, partition, table, self.schema)

    def last_offset(self, epoch: str, partition: int) -> int:
        """The largest offset on disk, -1 when there is none."""
        files, tail = _listing(self._path(epoch, partition))
        return max([-1, *(file.last for file in files), *(int(path.stem) for path in tail)])

    def last_offsets(self) -> dict[tuple[str, int], int]:
        """(epoch, partition) -> the largest offset on disk."""
        return {(e, p): self.last_offset(e, p) for e, p, _ in self._partitions()}

    # inside

    def _path(self, epoch: str, partition: int) -> Path:
        return self.directory / quote(epoch, safe="") / f"{partition:04d}"

    def _folder(self, epoch: str, partition: int) -> Path:
        folder = self._path(epoch, partition)
        if (epoch, partition) not in self._open:
            (folder / "tail").mkdir(parents=True, exist_ok=True)
        return folder

    def _partitions(self) -> list[tuple[str, int, Path]]:
        return [
            (unquote(path.parent.name), int(path.name), path)
            for path in sorted(self.directory.glob("*/[0-9]*"))
            if path.is_dir()
        ]

    def _known(self, stamp: Stamp, folder: Path) -> _Open:
        place = (stamp.epoch, stamp.partition)
        if place not in self._open:
            _, tail = _listing(folder)
            rows = sum(from_ipc(path.read_bytes(), self.schema).num_rows for path in tail)
            last = self.last_offset(*place)
            self._open[place] = _Open(last, rows, len(tail))
        return self._open[place]

    def _gather(self, folder: Path, known: _Open) -> None:
        epoch, partition = unquote(folder.parent.name), int(folder.name)
        files, tail = _listing(folder)
        parts = [self._read_tail(epoch, partition, path) for path in tail]
        offsets = [int(path.stem) for path in tail]
        rows = sum(part.num_rows for part in parts)
        if tail:
            while files and (before := _rows(files[-1].path)) <= MERGE_FACTOR * rows:
                if before + rows > FILE_ROWS:
                    break
                file = files.pop()
                parts.insert(0, self._read_parquet(file.path))
                offsets += [file.first, file.last]
                rows += before
            name = f"{min(offsets):020d}-{max(offsets):020d}.parquet"
            self._write_parquet(folder / name, pa.concat_tables(parts))
        self._sweep(folder)
        known.tail_rows = known.tail_files = 0

    def _sweep(self, folder: Path) -> None:
        """Removes what a Parquet file's range covers."""
        files, tail = _listing(folder)
        keep = {file.path for file in files} | set(tail)
        for path in _every_file(folder):
            if path not in keep:
                path.unlink(missing_ok=True)

    def _rewrite(self, path: Path) -> int:
        parquet = path.suffix == ".parquet"
        table = self._read_parquet(path) if parquet else from_ipc(path.read_bytes(), self.schema)
        kept = self.without_erased(table)
        if kept.num_rows < table.num_rows:
            if parquet:
                self._write_parquet(path, kept)
            else:
                self._put(path, to_ipc(_one_batch(kept)))
        return int(table.num_rows - kept.num_rows)

    def _next_file(
        self, epoch: str, partition: int, folder: Path, done: int
    ) -> tuple[pa.Table, int] | None:
        for _ in range(20):
            files, tail = _listing(folder)
            try:
                for file in files:
                    if file.last > done:
                        table = self._read_parquet(file.path)
                        return table.filter(pc.greater(table["offset"], done)), file.last
                for path in tail:
                    if int(path.stem) > done:
                        return self._read_tail(epoch, partition, path), int(path.stem)
                return None
            except FileNotFoundError:
                continue
        raise RuntimeError(f"{folder} is being rewritten without pause: stop its writers")

    def _read_tail(self, epoch: str, partition: int, path: Path) -> pa.Table:
        table = from_ipc(path.read_bytes(), self.schema)
        rows = table.num_rows
        position = [
            pa.array(np.full(rows, epoch, dtype=object), pa.string()),
            pa.array(np.full(rows, partition, dtype=np.int32)),
            pa.array(np.full(rows, int(path.stem), dtype=np.int64)),
            pa.array(np.arange(rows, dtype=np.int32)),
        ]
        return pa.Table.from_arrays([*table.columns, *position], schema=self.full_schema)

    def _read_parquet(self, path: Path) -> pa.Table:
        return conform(pq.read_table(path, partitioning=None), self.full_schema)

    def _write_parquet(self, path: Path, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=1)
        self._put(path, sink.getvalue())

    def _put(self, path: Path, content: bytes | pa.Buffer) -> None:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with open(beside, "wb") as file:
            file.write(content)
            if self._sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)

    def _read_erased(self) -> dict[str, int]:
        """The tombstones; read again only when the file has changed."""
        try:
            stat = os.stat(self.directory / "erased.json")
        except FileNotFoundError:
            return {}
        version = (stat.st_mtime_ns, stat.st_ino)
        if version != self._erased_version:
            self._erased = json.loads((self.directory / "erased.json").read_bytes())
            self._erased_version = version
        return dict(self._erased)


def _listing(folder: Path) -> tuple[list[_File], list[Path]]:
    """Parquet files and tail files that count, in offset order. The tail is listed first:
    what is gathered meanwhile is then seen in Parquet."""
    tail = sorted((folder / "tail").glob("*.arrow"))
    files: list[_File] = []
    for file in sorted(map(_File.parse, folder.glob("[0-9]*.parquet")), key=_widest_first):
        if not files or file.last > files[-1].last:
            files.append(file)
    filed = files[-1].last if files else -1
    return files, [path for path in tail if int(path.stem) > filed]


def _widest_first(file: _File) -> tuple[int, int]:
    return (file.first, -file.last)


def _every_file(folder: Path) -> list[Path]:
    return [*folder.glob("[0-9]*.parquet"), *(folder / "tail").glob("*.arrow")]


def _rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0] if table.num_rows else _empty(table.schema)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def _by_offset(
    epoch: str, partition: int, table: pa.Table, schema: pa.Schema
) -> Iterator[tuple[Stamp, pa.Table]]:
    offsets = table["offset"].to_numpy()
    edges = np.flatnonzero(np.diff(offsets)) + 1
    columns = table.select(schema.names)
    for start, stop in zip([0, *edges], [*edges, len(offsets)], strict=True):
        if stop > start:
            yield Stamp(epoch, partition, int(offsets[start])), columns.slice(start, stop - start)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Orders the processes that write into one folder; released by the kernel on a crash."""
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
