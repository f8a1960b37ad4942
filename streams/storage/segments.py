"""Durable batches on disk: each stamp once, in Parquet by hour, partition and offset range.

Knows stamps, Arrow tables and erased users. Does not know what rows mean, how files are named
(`streams.storage.segment_names`), nor compaction and retention (`streams.storage.compaction`).

`append` returns once the batch is a write-ahead file of its own. A flush seals many of them into
Parquet; a large append becomes Parquet directly. Files are renamed into place, so readers see
whole files only. Redeliveries, replays and a second writer change nothing, and a recreated topic
has a new topic id and so new names. Readers ignore a write-ahead or smaller file whose offsets
a Parquet file covers, so that a crash between a rename and a removal counts nothing twice.
Files survive the death of the process; `sync` also survives a power failure.

A batch is stored whole in the hour of its newest time. No row of `hour=H` is newer than H, so
a reader of rows since H can skip all earlier folders.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streams.bus.contract import Stamp
from streams.contract.schema import conform, to_ipc
from streams.storage.parquet import to_parquet
from streams.storage.segment_files import locked
from streams.storage.segment_names import LogPartition, SealedFile, WriteAheadFiles
from streams.storage.segment_reader import SegmentReader
from streams.storage.segment_rows import hour_runs, to_record_batch, with_positions
from streams.storage.tombstones import Tombstones

_log = logging.getLogger(__name__)

DIRECT_FLUSH_ROWS = 32_768  # an append of this many rows becomes Parquet directly
FLUSH_ROWS = 200_000  # write-ahead rows of a partition that trigger a flush
FLUSH_FILES = 256  # and files, which keeps a log of small batches fast to read


class LogBatch(NamedTuple):
    """A batch to append. `payload`: `table` as IPC, if it is available."""

    stamp: Stamp
    table: pa.Table
    payload: bytes | None = None


@dataclass
class _PartitionState:
    """What this process knows of one partition."""

    last: int  # the largest offset on disk
    write_ahead_rows: int
    write_ahead_files: int

    @property
    def flush_due(self) -> bool:
        return self.write_ahead_rows >= FLUSH_ROWS or self.write_ahead_files >= FLUSH_FILES


class Segments(SegmentReader):
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
        """`times`: see `SegmentReader`. `distinct`: strings that hardly repeat, which a Parquet
        dictionary would make larger."""
        super().__init__(directory, schema, times=times, sync=sync)
        self._distinct = frozenset(distinct)
        self._tombstones = Tombstones(self.files, self.times)
        self._states: dict[LogPartition, _PartitionState] = {}
        self._lock = threading.Lock()

    def append(self, stamp: Stamp, table: pa.Table, payload: bytes | None = None) -> bool:
        """Makes a batch durable; False if its stamp is already stored. `payload`: `table` as IPC.

        Raises OSError (disk full) and then keeps nothing of the batch.
        """
        return bool(self.extend([LogBatch(stamp, table, payload)]))

    def extend(self, batches: Sequence[LogBatch]) -> int:
        """Appends batches of one partition in offset order; returns how many were new.

        Raises OSError and then keeps a prefix of the batches, possibly none.
        """
        partition = LogPartition(batches[0].stamp.topic_id, batches[0].stamp.partition)
        folder = self.files.write_ahead_folder(partition)
        with self._lock:
            if partition not in self._states:
                folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                state = self._state_of(partition)
                new = [self._prepared(each) for each in batches if each.stamp.offset > state.last]
                large = sum(each.table.num_rows for each in new) >= DIRECT_FLUSH_ROWS
                if not (large and self._try_flush(partition, state, new)):
                    self._append_write_ahead(folder, state, new)
                if state.flush_due:
                    self._try_flush(partition, state)
                return len(new)

    def flush(self, unless: Callable[[WriteAheadFiles], bool] = lambda _: False) -> None:
        """Seals all write-ahead files into Parquet, for readers that know only Parquet.
        Partitions for which `unless` holds are left alone."""
        for partition in self.files.write_ahead_partitions():
            with self._lock, locked(self.files.write_ahead_folder(partition)):
                write_ahead = self.files.write_ahead(partition)
                if (write_ahead.offsets or write_ahead.interrupted) and not unless(write_ahead):
                    self._flush(partition)
                    self._states.pop(partition, None)

    def erase(self, user_id: str, at_ms: int) -> int:
        """Removes the user's rows up to `at_ms` from every file and from later appends.

        Returns the number of rows removed. Appends continue meanwhile.
        """
        self._tombstones.add(user_id, at_ms)
        removed = 0
        for partition in self.files.write_ahead_partitions():
            with self._lock, locked(self.files.write_ahead_folder(partition)):
                removed += self._erase_write_ahead(partition)
        with self.files.rewrite_lock():
            self.files.remove_leftovers()
            for files in self.files.sealed_files().values():
                removed += sum(map(self._erase_sealed, files))
        return removed

    def without_erased(self, table: pa.Table) -> pa.Table:
        """The rows that no erasure covers."""
        return self._tombstones.without_erased(table)

    def write_file(self, file: SealedFile, table: pa.Table) -> None:
        """Adds a Parquet file. `table`: rows with their positions."""
        self.files.add_sealed(file, to_parquet(table, self._distinct))

    def _state_of(self, partition: LogPartition) -> _PartitionState:
        if partition not in self._states:
            write_ahead = self.files.write_ahead(partition)
            pending = [n for n in write_ahead.offsets if n > write_ahead.sealed_to]
            rows = sum(self._write_ahead_batch(write_ahead, n).num_rows for n in pending)
            last = self.last_offset(*partition)
            self._states[partition] = _PartitionState(last, rows, len(pending))
        return self._states[partition]

    def _prepared(self, batch: LogBatch) -> LogBatch:
        """The batch in this schema, without the rows of erased users."""
        kept = conform(self.without_erased(batch.table), self.schema)
        whole = kept.num_rows == batch.table.num_rows
        return LogBatch(batch.stamp, kept, batch.payload if whole else None)

    def _append_write_ahead(
        self, folder: Path, state: _PartitionState, new: Sequence[LogBatch]
    ) -> None:
        for stamp, table, payload in new:
            content = to_ipc(to_record_batch(table)) if payload is None else payload
            self.files.write_atomically(folder / f"{stamp.offset:020d}.arrow", content)
            state.last = stamp.offset
            state.write_ahead_rows += table.num_rows
            state.write_ahead_files += 1

    def _try_flush(
        self, partition: LogPartition, state: _PartitionState, new: Sequence[LogBatch] = ()
    ) -> bool:
        """Whether the flush succeeded. Write-ahead files are durable, so that a failed flush
        fails no append."""
        state.write_ahead_rows = state.write_ahead_files = 0
        try:
            self._flush(partition, new)
        except OSError as error:
            _log.warning("%s: flush failed, write-ahead files are kept: %s", self.directory, error)
            return False
        state.last = max([state.last, *(each.stamp.offset for each in new)])
        return True

    def _flush(self, partition: LogPartition, new: Sequence[LogBatch] = ()) -> None:
        """Seals the write-ahead files, and `new` directly."""
        write_ahead = self.files.write_ahead(partition)
        sealed = self.files.listing(partition).sealed if write_ahead.interrupted else []
        sealed_to = max([write_ahead.sealed_to, *(file.last for file in sealed)])
        tables = {each.stamp.offset: each.table for each in new}
        pending = sorted(n for n in {*write_ahead.offsets, *tables} if n > sealed_to)
        parts = [
            tables[n] if n in tables else self._write_ahead_batch(write_ahead, n) for n in pending
        ]
        if pending:
            self.files.mark_flush_started(write_ahead)
        for hour, run in hour_runs(parts, self.times):
            sealed_to = pending[run.stop - 1]
            file = SealedFile(hour, *partition, first=pending[run.start], last=sealed_to)
            rows = with_positions(partition, pending[run], parts[run], self.full_schema)
            self.write_file(file, rows)
        for offset in pending:
            if write_ahead.path(offset) in self._damaged:
                self.files.keep_damaged(write_ahead.path(offset))
        self.files.mark_sealed(write_ahead, sealed_to)

    def _erase_write_ahead(self, partition: LogPartition) -> int:
        listing = self.files.listing(partition)
        removed = 0
        for offset in listing.write_ahead.offsets:
            path = listing.write_ahead.path(offset)
            table = self._write_ahead_batch(listing.write_ahead, offset)
            kept = self.without_erased(table)
            if kept.num_rows < table.num_rows:
                self.files.write_atomically(path, to_ipc(to_record_batch(kept)))
                removed += table.num_rows - kept.num_rows if offset in listing.pending else 0
        return int(removed)

    def _erasable_columns(self, file: SealedFile) -> pa.Table:
        """What an erasure compares; no rows if the file cannot be read."""
        columns = ["user_id", *self.times]
        if self.is_readable(file):
            with suppress(pa.ArrowException, OSError):  # damage inside: the full read names it
                return pq.read_table(self.files.path(file), columns=columns, partitioning=None)
            return self.read_file(file).select(columns)
        return self.full_schema.empty_table().select(columns)

    def _erase_sealed(self, file: SealedFile) -> int:
        """Rewrites a file that holds erased rows as its next revision."""
        compared = self._erasable_columns(file)
        erased = self._tombstones.erased_rows(compared)
        if erased is None or not (removed := pc.sum(erased).as_py()):
            return 0
        kept = self.read_file(file).filter(pc.invert(erased))
        self.write_file(replace(file, revision=file.revision + 1), kept)
        self.files.remove([file])
        return int(removed)
