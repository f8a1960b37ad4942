"""Names of stored files: which hour, partition and offset range each one holds.

Knows names and ranges. Does not know rows nor how files are written
(`streams.storage.segment_files`). Pure.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

FLUSHED, COMPACTED = "g", "m"  # a Parquet file's stage: as flushed, or merged and sorted
_SEALED_NAME = re.compile(r"(\d{4,9})-(\d{20})-(\d{20})-(\d{4,9})([gm])-(.+)\.parquet", re.ASCII)
_LATEST_MS = 253_402_300_799_999  # the end of the year 9999


class LogPartition(NamedTuple):
    """A partition of a topic. A recreated topic has a new id."""

    topic_id: str
    partition: int


def hour_of(ms: int) -> int:
    """The UTC hour of a time as the number yyyymmddhh, which sorts by time."""
    moment = datetime.fromtimestamp(min(max(ms, 0), _LATEST_MS) / 1000, UTC)
    return int(moment.strftime("%Y%m%d%H"))


def hour_start_ms(hour: int) -> int:
    """The first millisecond of an hour (yyyymmddhh)."""
    return int(datetime.strptime(str(hour), "%Y%m%d%H").replace(tzinfo=UTC).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One Parquet file by its name: the batches `first` to `last` of one partition."""

    hour: int
    topic_id: str
    partition: int
    first: int
    last: int
    revision: int = 0
    stage: str = FLUSHED

    @property
    def log_partition(self) -> LogPartition:
        return LogPartition(self.topic_id, self.partition)

    @property
    def name(self) -> str:
        offsets = f"{self.partition:04d}-{self.first:020d}-{self.last:020d}"
        return f"{offsets}-{self.revision:04d}{self.stage}-{quote(self.topic_id, safe='')}.parquet"

    @staticmethod
    def parse(hour: int, name: str) -> SealedFile | None:
        """None for a foreign file, such as Spark's `_SUCCESS`."""
        if (found := _SEALED_NAME.fullmatch(name)) is None:
            return None
        partition, first, last, revision = map(int, found.groups()[:4])
        stage, topic_id = found.groups()[4:]
        return SealedFile(hour, unquote(topic_id), partition, first, last, revision, stage)


@dataclass(frozen=True)
class WriteAheadFiles:
    """One partition's batches that were not flushed to Parquet yet, a file each."""

    folder: Path
    sealed_to: int  # the last offset that is known to be in Parquet, -1 for none
    offsets: list[int]  # of the files, ascending; those up to `sealed_to` are leftovers
    interrupted: bool  # a flush was cut short: more than `sealed_to` may be in Parquet

    @property
    def last(self) -> int:
        return max([self.sealed_to, *self.offsets[-1:]])

    def path(self, offset: int) -> Path:
        return self.folder / f"{offset:020d}.arrow"

    def sealed_mark(self, offset: int) -> Path:
        """The empty file that states `sealed_to`."""
        return self.folder / f"{offset:020d}.filed"

    @property
    def flush_mark(self) -> Path:
        """The empty file that exists during a flush."""
        return self.folder / "filing"


@dataclass(frozen=True)
class PartitionFiles:
    """The current files of one partition in offset order: Parquet, then write-ahead."""

    sealed: list[SealedFile]
    write_ahead: WriteAheadFiles
    pending: list[int]  # offsets of write-ahead files that are not in Parquet

    @staticmethod
    def of(sealed: list[SealedFile], write_ahead: WriteAheadFiles) -> PartitionFiles:
        sealed_to = max([write_ahead.sealed_to, *(file.last for file in sealed[-1:])])
        pending = [offset for offset in write_ahead.offsets if offset > sealed_to]
        return PartitionFiles(sealed, write_ahead, pending)


def current_files(files: Iterable[SealedFile]) -> dict[LogPartition, list[SealedFile]]:
    """The files that are read, by partition and in offset order; the others are leftovers.

    A crash leaves a file whose range a wider file or a newer revision covers.
    """
    found: dict[LogPartition, list[SealedFile]] = defaultdict(list)
    for file in sorted(files, key=lambda f: (f.first, -f.last, -f.revision)):
        current = found[file.log_partition]
        if not current or file.last > current[-1].last:
            current.append(file)
    return dict(found)
