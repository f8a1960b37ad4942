"""Where batches lie: names, hours, listings, locks, and files that appear whole.

    tail/<epoch>/<partition>/<offset>.arrow    one file per batch, written at once
    tail/<epoch>/<partition>/<offset>.filed    all batches up to this one are in Parquet
    tail/<epoch>/<partition>/filing            they are being filed, or that was cut short
    parquet/hour=<yyyymmddhh>/<partition>-<first>-<last>-<revision><stage>-<epoch>.parquet

Knows names and ranges. Does not know rows. Everything below `parquet` is what polars,
duckdb and Spark read as it lies, with `hour` (UTC) as its one partition column. What is
not below it, or begins with a dot, is not theirs.

A Parquet file's name says which batches of which partition it holds. Those that count
never overlap; one whose range a wider one covers, or a newer revision of the same
range, is what a crash left behind, and is never read.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa

GATHERED, MERGED = "g", "m"  # a file's stage: as it left the tail, or sorted by upkeep
HOUR_MS = 3_600_000
_LATEST_MS = 253_402_300_799_999  # the end of the year 9999
_STALE_S = 3_600.0  # what a killed writer left half-written is removed after this

Place = tuple[str, int]
"""(epoch, partition)."""


def hour_of(ms: int) -> int:
    """The UTC hour of a time as the number yyyymmddhh, in which order and time agree."""
    moment = datetime.fromtimestamp(min(max(ms, 0), _LATEST_MS) / 1000, UTC)
    return int(moment.strftime("%Y%m%d%H"))


def start_of(hour: int) -> int:
    """The ms at which an hour (yyyymmddhh) begins."""
    return int(datetime.strptime(str(hour), "%Y%m%d%H").replace(tzinfo=UTC).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Filed:
    """One Parquet file, as its name tells it: batches `first` to `last` of one partition."""

    hour: int
    epoch: str
    partition: int
    first: int
    last: int
    revision: int = 0
    stage: str = GATHERED

    @property
    def place(self) -> Place:
        return (self.epoch, self.partition)

    @property
    def name(self) -> str:
        span = f"{self.partition:04d}-{self.first:020d}-{self.last:020d}"
        return f"{span}-{self.revision:04d}{self.stage}-{quote(self.epoch, safe='')}.parquet"

    @staticmethod
    def parse(hour: int, name: str) -> Filed:
        partition, first, last, state, epoch = name.removesuffix(".parquet").split("-", 4)
        return Filed(
            hour, unquote(epoch), int(partition), int(first), int(last), int(state[:-1]), state[-1]
        )


@dataclass(frozen=True)
class Tail:
    """One partition's batches that wait for Parquet."""

    folder: Path
    filed_to: int  # the last offset that is known to be in Parquet, -1 for none
    batches: list[int]  # offsets of the files, ascending; those up to `filed_to` do not count
    interrupted: bool  # a filing was cut short: more than `filed_to` may be in Parquet

    @property
    def last(self) -> int:
        return max([self.filed_to, *self.batches[-1:]])

    def path(self, offset: int) -> Path:
        return self.folder / f"{offset:020d}.arrow"


@dataclass(frozen=True)
class Listing:
    """What counts of one partition: Parquet files, then tail batches, in offset order."""

    filed: list[Filed]
    tail: Tail
    batches: list[int]


class OldLayout(RuntimeError):
    """The folder was written by a version that kept its files elsewhere."""


class SegmentFiles:
    """The files under one folder."""

    def __init__(self, directory: Path, *, sync: bool = False) -> None:
        """Raises OldLayout rather than leave what an earlier version wrote unread."""
        if old := next(directory.glob("*/[0-9][0-9][0-9][0-9]/tail"), None):
            raise OldLayout(
                f"{old.parent.parent} is of an earlier layout, which this version does not read: "
                f"move {directory} away, and load its events again"
            )
        self.directory = directory
        self.parquet = directory / "parquet"
        self._sync = sync

    # listing

    def path(self, file: Filed) -> Path:
        return self.parquet / f"hour={file.hour}" / file.name

    def tail_folder(self, place: Place) -> Path:
        return self.directory / "tail" / quote(place[0], safe="") / f"{place[1]:04d}"

    def tail(self, place: Place) -> Tail:
        folder = self.tail_folder(place)
        names = os.listdir(folder) if folder.is_dir() else []
        batches = sorted(int(name[:-6]) for name in names if _is_batch(name))
        filed = [int(name[:-6]) for name in names if name.endswith(".filed") and name[0] != "."]
        return Tail(folder, max(filed, default=-1), batches, "filing" in names)

    def listing(self, place: Place) -> Listing:
        return self.listings([place])[place]

    def listings(
        self, places: Iterable[Place] | None = None, since: int = 0
    ) -> dict[Place, Listing]:
        """What counts, by place. Files of hours before `since` are left out.

        The tails are listed first: what is filed meanwhile is then seen in Parquet.
        """
        tails = {place: self.tail(place) for place in places or self.tail_places()}
        filed = self.filed(since)
        if places is None:
            tails |= {place: self.tail(place) for place in filed.keys() - tails.keys()}
        return {
            place: _listing(tails[place], filed.get(place, [])) for place in sorted(tails)
        }  # fmt: skip

    def filed(self, since: int = 0) -> dict[Place, list[Filed]]:
        """The Parquet files that count, by place and in offset order.

        Listed until two listings agree, since a file that is merged away while a folder
        is being listed might be missed together with what took its place.
        """
        found = self.every_file(since)
        for _ in range(20):
            again = self.every_file(since)
            if again == found:
                break
            found = again
        return counted(found)

    def every_file(self, since: int = 0) -> set[Filed]:
        """All Parquet files of hours from `since` on, those that do not count among them."""
        return {
            Filed.parse(hour, name)
            for hour, folder in self.hours()
            if hour >= since
            for name in _names(folder)
            if name[0] != "."
        }

    def hours(self) -> list[tuple[int, Path]]:
        """The hours' folders, oldest first."""
        names = sorted(name for name in _names(self.parquet) if name.startswith("hour="))
        return [(int(name[5:]), self.parquet / name) for name in names]

    def tail_places(self) -> list[Place]:
        return [
            (unquote(path.parent.name), int(path.name))
            for path in (self.directory / "tail").glob("*/[0-9]*")
        ]

    # writing

    def put(self, path: Path, content: bytes | pa.Buffer) -> None:
        """Writes a file that appears whole, or raises OSError and leaves nothing behind."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(beside, "wb") as file:
                file.write(content)
                if self._sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if self._sync:
            _sync_folder(path.parent)

    def mark_filed(self, tail: Tail, filed_to: int) -> None:
        """Everything up to `filed_to` is in Parquet; the tail's own copies go."""
        if filed_to > tail.filed_to:
            self.put(tail.folder / f"{filed_to:020d}.filed", b"")
            (tail.folder / f"{tail.filed_to:020d}.filed").unlink(missing_ok=True)
        for offset in tail.batches:
            if offset <= filed_to:
                tail.path(offset).unlink(missing_ok=True)
        (tail.folder / "filing").unlink(missing_ok=True)

    def add(self, file: Filed, content: pa.Buffer) -> None:
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.put(path, content)
        except FileNotFoundError:  # the hour was empty, and `remove_empty_hours` took it
            path.parent.mkdir(parents=True, exist_ok=True)
            self.put(path, content)

    def remove(self, files: Iterable[Filed]) -> None:
        for file in files:
            self.path(file).unlink(missing_ok=True)

    def remove_empty_hours(self, before: int) -> None:
        for hour, folder in self.hours():
            if hour < before:
                with suppress(OSError):  # somebody filed into it
                    folder.rmdir()

    def sweep(self) -> None:
        """Removes what does not count, and what killed writers left half-written. Hold `rewriting`."""
        found = self.every_file()  # once: a file that is added from now on must not be missed
        self.remove(found - {file for files in counted(found).values() for file in files})
        folders = [folder for _, folder in self.hours()]
        for folder in [*folders, *map(self.tail_folder, self.tail_places())]:
            for name in _names(folder):
                if name[0] == "." and name != ".lock":
                    _remove_stale(folder / name)

    @contextmanager
    def rewriting(self) -> Iterator[None]:
        """Held by whoever replaces or removes Parquet files; adding needs only the tail's lock."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with locked(self.directory):
            yield


def counted(files: Iterable[Filed]) -> dict[Place, list[Filed]]:
    """Those that count, by place and in offset order."""
    found: dict[Place, list[Filed]] = defaultdict(list)
    for file in sorted(files, key=lambda f: (f.first, -f.last, -f.revision)):
        before = found[file.place]
        if not before or file.last > before[-1].last:
            before.append(file)
    return dict(found)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Orders the processes that write into one folder; released by the kernel on a crash."""
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _listing(tail: Tail, filed: list[Filed]) -> Listing:
    filed_to = max([tail.filed_to, *(file.last for file in filed[-1:])])
    return Listing(filed, tail, [offset for offset in tail.batches if offset > filed_to])


def _is_batch(name: str) -> bool:
    return name.endswith(".arrow") and name[0] != "."


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
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
