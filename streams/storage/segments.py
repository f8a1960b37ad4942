"""Durable batches on disk: each stamp once, in Parquet by hour, partition and offset range.

Knows stamps, Arrow tables, hours and erased users. Does not know what the rows say, how
files are named (`streams.storage.segment_files`), nor when small files are merged and old hours
dropped (`streams.storage.compaction`).

A batch is one small file in the tail when `append` returns; many batches become Parquet
together, and many rows that come at once do so without having been in the tail. A file is
written beside its place and renamed into it, so a reader sees whole files only. A second
delivery, a zombie or a replay changes nothing, and a new epoch has names of its own. What a Parquet file's range covers is never read from the tail or from
a smaller file, so a crash between a rename and a removal counts nothing twice. Files
survive the process being killed; set `sync` to survive a power failure as well.

A batch lies whole in the hour of its newest time. So no row of `hour=H` arrived or
happened after H, and who wants what came since H leaves out all earlier folders.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streams.bus.contract import Stamp
from streams.contract.schema import conform, from_ipc, to_ipc
from streams.storage.parquet import to_parquet
from streams.storage.segment_files import Filed, Listing, Place, SegmentFiles, Tail, hour_of, locked
from streams.storage.segment_rows import POSITION, by_offset, hour_runs, one_batch, placed

_log = logging.getLogger(__name__)

AT_ONCE_ROWS = 32_768  # so many rows that come at once become Parquet at once
GATHER_ROWS = 200_000  # a tail this long becomes Parquet
GATHER_FILES = 256  # and so does one of this many files, so that a quiet log stays quick to read

T = TypeVar("T")


class Batch(NamedTuple):
    """A batch as it came; `payload`: `table` as IPC, where that is at hand."""

    stamp: Stamp
    table: pa.Table
    payload: bytes | None = None


@dataclass
class _Open:
    """What this process knows of one partition."""

    last: int  # the largest offset that is on disk
    tail_rows: int
    tail_files: int


class Segments:
    """Batches of `schema` under one folder. Safe for several threads and processes."""

    def __init__(
        self,
        directory: Path,
        schema: pa.Schema,
        *,
        times: Sequence[str],
        distinct: Sequence[str] = (),
        sync: bool = False,
    ) -> None:
        """`times`: columns in ms, arrival first. The latest of them names a batch's hour; a
        row is an erased user's if any of them is old enough; upkeep sorts by the last one.
        `distinct`: strings that hardly repeat, which a dictionary would only make larger."""
        self.directory = directory
        self.schema = schema
        self.full_schema = pa.schema([*schema, *POSITION])
        self.times = tuple(times)
        self._distinct = frozenset(distinct)
        self.files = SegmentFiles(directory, sync=sync)
        self._open: dict[Place, _Open] = {}
        self._erased: dict[str, int] = {}
        self._erased_version = (0, 0)
        self._lock = threading.Lock()

    # writing

    def append(self, stamp: Stamp, table: pa.Table, payload: bytes | None = None) -> bool:
        """Makes a batch durable; False when its stamp is on disk. `payload`: `table` as IPC.

        Raises OSError (a full disk) with nothing of the batch kept.
        """
        return bool(self.extend([Batch(stamp, table, payload)]))

    def extend(self, batches: Sequence[Batch]) -> int:
        """`append` of one partition's batches in offset order; how many were not on disk.

        Raises OSError with the first ones kept, or none.
        """
        place = (batches[0].stamp.epoch, batches[0].stamp.partition)
        folder = self.files.tail_folder(place)
        with self._lock:
            if place not in self._open:
                folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                known = self._known(place)
                new = [self._kept(each) for each in batches if each.stamp.offset > known.last]
                many = sum(each.table.num_rows for each in new) >= AT_ONCE_ROWS
                if not (many and self._gather_or_wait(place, known, new)):
                    self._append_to_tail(folder, known, new)
                if known.tail_rows >= GATHER_ROWS or known.tail_files >= GATHER_FILES:
                    self._gather_or_wait(place, known)
                return len(new)

    def gather(self, unless: Callable[[Tail], bool] = lambda _: False) -> None:
        """Turns every tail into Parquet now, for readers that know nothing but Parquet;
        those that `unless` holds for are left."""
        for place in self.files.tail_places():
            with self._lock, locked(self.files.tail_folder(place)):
                tail = self.files.tail(place)
                if (tail.batches or tail.interrupted) and not unless(tail):
                    self._gather(place)
                    self._open.pop(place, None)

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's rows up to `at_ms` from every file, and from later appends.

        Returns the number of rows removed. Appends go on meanwhile.
        """
        with self.files.rewriting():
            erased = self._read_erased()
            erased[user_id] = max(at_ms, erased.get(user_id, at_ms))
            self.files.put(self.directory / "erased.json", json.dumps(erased).encode())
        removed = 0
        for place in self.files.tail_places():
            with self._lock, locked(self.files.tail_folder(place)):
                removed += self._erase_tail(place)
        with self.files.rewriting():
            self.files.sweep()
            for files in self.files.filed().values():
                removed += sum(map(self._erase_file, files))
        return removed

    def without_erased(self, table: pa.Table) -> pa.Table:
        """The rows that no tombstone covers."""
        gone = self._gone(table)
        return table if gone is None else table.filter(pc.invert(gone))

    # reading

    def scan(self, since_ms: int | None = None) -> pl.LazyFrame:
        """Every row with its position. Parquet is read lazily, the tail at once.

        With `since_ms`, hours that hold nothing as new as this are left out; of the
        others all rows come. A small file may be merged away between the call and
        `collect`, which then raises FileNotFoundError: use `consistently`, or call again.
        """
        filed: list[Path] = []
        tails: list[pa.Table] = []
        since = 0 if since_ms is None else hour_of(since_ms)
        for place, listing in self.files.listings(since=since).items():
            filed += map(self.files.path, listing.filed)
            tails += [self._read_batch(place, listing.tail, n) for n in listing.batches]
        tail_frame = pl.DataFrame(pa.concat_tables([self.full_schema.empty_table(), *tails]))
        if not filed:
            return tail_frame.lazy()
        lazy = pl.scan_parquet(filed, missing_columns="insert", extra_columns="ignore",
                               schema=tail_frame.schema, hive_partitioning=False)  # fmt: skip
        return pl.concat([lazy, tail_frame.lazy()])

    def consistently(self, read: Callable[[pl.LazyFrame], T], since_ms: int | None = None) -> T:
        """`read(scan(since_ms))`, again when a file was merged away under it."""
        for _ in range(20):
            try:
                return read(self.scan(since_ms))
            except FileNotFoundError:
                continue
        raise RuntimeError(f"{self.directory} is being rewritten without pause: stop its writers")

    def batches(self) -> Iterator[tuple[Stamp, pa.Table]]:
        """Every batch by epoch and partition, in offset order; one file in memory at a time."""
        for place in sorted(self.files.listings()):
            yield from self._batches_of(place)

    def last_offset(self, epoch: str, partition: int) -> int:
        """The largest offset that was ever filed, -1 when there is none."""
        place = (epoch, partition)
        tail = self.files.tail(place)
        if tail.last >= 0 and not tail.interrupted:
            return tail.last
        return max([tail.last, *(file.last for file in self.files.listing(place).filed)])

    def last_offsets(self) -> dict[Place, int]:
        """(epoch, partition) -> the largest offset that was ever filed."""
        return {place: self.last_offset(*place) for place in self.files.listings()}

    # Parquet, for `streams.storage.compaction` too

    def read_file(self, file: Filed) -> pa.Table:
        table = pq.read_table(self.files.path(file), partitioning=None)
        return conform(table, self.full_schema)

    def write_file(self, file: Filed, table: pa.Table) -> None:
        self.files.add(file, to_parquet(table, self._distinct))

    # inside

    def _known(self, place: Place) -> _Open:
        if place not in self._open:
            tail = self.files.tail(place)
            waiting = [n for n in tail.batches if n > tail.filed_to]
            rows = sum(self._read_batch(place, tail, n).num_rows for n in waiting)
            self._open[place] = _Open(self.last_offset(*place), rows, len(waiting))
        return self._open[place]

    def _kept(self, batch: Batch) -> Batch:
        """Without erased users' rows."""
        kept = conform(self.without_erased(batch.table), self.schema)
        whole = kept.num_rows == batch.table.num_rows
        return Batch(batch.stamp, kept, batch.payload if whole else None)

    def _append_to_tail(self, folder: Path, known: _Open, new: Sequence[Batch]) -> None:
        for stamp, table, payload in new:
            content = to_ipc(one_batch(table)) if payload is None else payload
            self.files.put(folder / f"{stamp.offset:020d}.arrow", content)
            known.last = stamp.offset
            known.tail_rows += table.num_rows
            known.tail_files += 1

    def _gather_or_wait(self, place: Place, known: _Open, new: Sequence[Batch] = ()) -> bool:
        """Whether it could be done. What is in the tail is durable as it is, so a failure
        here fails no append."""
        known.tail_rows = known.tail_files = 0
        try:
            self._gather(place, new)
        except OSError as error:
            _log.warning("%s: the tail stays as it is: %s", self.directory, error)
            return False
        known.last = max([known.last, *(each.stamp.offset for each in new)])
        return True

    def _gather(self, place: Place, new: Sequence[Batch] = ()) -> None:
        """Files the tail, and with it what never was in it."""
        tail = self.files.tail(place)
        listing = self.files.listing(place) if tail.interrupted else Listing([], tail, [])
        filed_to = max([tail.filed_to, *(file.last for file in listing.filed)])
        at_hand = {each.stamp.offset: each.table for each in new}
        waiting = sorted(n for n in {*tail.batches, *at_hand} if n > filed_to)
        parts = [at_hand[n] if n in at_hand else self._read_tail(tail, n) for n in waiting]
        if waiting:
            self.files.put(tail.folder / "filing", b"")
        for hour, run in hour_runs(parts, self.times):
            filed_to = waiting[run.stop - 1]
            file = Filed(hour, *place, first=waiting[run.start], last=filed_to)
            self.write_file(file, placed(place, waiting[run], parts[run], self.full_schema))
        self.files.mark_filed(tail, filed_to)

    def _erase_tail(self, place: Place) -> int:
        listing = self.files.listing(place)
        removed = 0
        for offset in listing.tail.batches:
            path = listing.tail.path(offset)
            table = from_ipc(path.read_bytes(), self.schema)
            kept = self.without_erased(table)
            if kept.num_rows < table.num_rows:
                self.files.put(path, to_ipc(one_batch(kept)))
                removed += table.num_rows - kept.num_rows if offset in listing.batches else 0
        return int(removed)

    def _erase_file(self, file: Filed) -> int:
        """A file that holds the user is written anew as its next revision."""
        columns = ["user_id", *self.times]
        looked = pq.read_table(self.files.path(file), columns=columns, partitioning=None)
        gone = self._gone(looked)
        if gone is None or not (removed := pc.sum(gone).as_py()):
            return 0
        kept = self.read_file(file).filter(pc.invert(gone))
        self.write_file(replace(file, revision=file.revision + 1), kept)
        self.files.remove([file])
        return int(removed)

    def _gone(self, table: pa.Table) -> pa.Array | None:
        """Which rows a tombstone covers; None when there are no tombstones."""
        erased: Mapping[str, int] = self._read_erased()
        if not erased:
            return None
        until = pc.index_in(table["user_id"], pa.array(list(erased), pa.string()))
        limits = pa.array(list(erased.values()), pa.int64()).take(until.combine_chunks())
        gone = pa.array(np.zeros(table.num_rows, dtype=bool))
        for column in self.times:
            gone = pc.or_(gone, pc.fill_null(pc.less_equal(table[column], limits), False))
        return gone

    def _batches_of(self, place: Place) -> Iterator[tuple[Stamp, pa.Table]]:
        done, again = -1, 0
        while True:
            try:
                for table, last in self._tables_of(place, done):
                    yield from by_offset(place, table, self.schema)
                    done, again = last, 0
                return
            except FileNotFoundError:
                again += 1
                if again > 20:
                    raise RuntimeError(
                        f"{self.directory} is being rewritten without pause: stop its writers"
                    ) from None

    def _tables_of(self, place: Place, done: int) -> Iterator[tuple[pa.Table, int]]:
        """What lies beyond the offset `done`, file by file, each with its last offset."""
        listing = self.files.listing(place)
        for file in listing.filed:
            if file.last > done:
                table = self.read_file(file)
                yield table.filter(pc.greater(table["offset"], done)), file.last
        for offset in listing.batches:
            if offset > done:
                yield self._read_batch(place, listing.tail, offset), offset

    def _read_tail(self, tail: Tail, offset: int) -> pa.Table:
        return from_ipc(tail.path(offset).read_bytes(), self.schema)

    def _read_batch(self, place: Place, tail: Tail, offset: int) -> pa.Table:
        return placed(place, [offset], [self._read_tail(tail, offset)], self.full_schema)

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
