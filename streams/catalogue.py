"""The catalogue: a fold of item events, and the file that keeps those events.

Knows which items exist, what their owners say of them and whether they may be shown.
Does not know who watches them. The fold is order-free: of two events on one video the
one with the larger (event_time_ms, event_id) stands, whichever came first, so a replay
or a second copy of the topic changes nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from streams.bus.contract import Bus, Record
from streams.contract.events import CATALOGUE_EVENT, CatalogueEvent, CatalogueItem, ItemTakenDown
from streams.contract.topics import CATALOGUE

ITEM_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "video_id": pl.String,
    "title": pl.String,
    "genres": pl.List(pl.String),
    "author_id": pl.String,
    "duration_ms": pl.Int64,
    "price_cents": pl.Int64,
    "provenance": pl.String,
    "created_ms": pl.Int64,
    "available": pl.Boolean,
}


@dataclass(frozen=True, slots=True)
class _Entry:
    order: tuple[int, str]  # (event_time_ms, event_id) of the event that stands
    item: CatalogueItem | None  # None: taken down before it was ever described
    item_order: tuple[int, str]
    available: bool


_NEVER = (-1, "")


class Catalogue:
    """What the catalogue events add up to. Safe to read from many threads while one applies."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._version = 0
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """Grows by one with every event that changed something."""
        return self._version

    def apply(self, event: CatalogueEvent) -> bool:
        """Folds one event; False when it changed nothing (seen before, or outdated)."""
        with self._lock:
            video_id = _video_id(event)
            before = self._entries.get(video_id, _Entry(_NEVER, None, _NEVER, False))
            after = _fold(before, event)
            if after == before:
                return False
            self._entries[video_id] = after
            self._version += 1
            return True

    def get(self, video_id: str) -> CatalogueItem | None:
        """What is known of a video, also of one that was taken down; None when never described."""
        entry = self._entries.get(video_id)
        return entry.item if entry else None

    def available(self, video_id: str) -> bool:
        """May the video be shown? False for an unknown one."""
        entry = self._entries.get(video_id)
        return entry is not None and entry.available

    def available_ids(self) -> list[str]:
        """Every video that may be shown, sorted."""
        with self._lock:
            return sorted(video for video, entry in self._entries.items() if entry.available)

    def __len__(self) -> int:
        return len(self._entries)

    def to_frame(self) -> pl.DataFrame:
        """One row per described item, sorted by video_id, with `ITEM_COLUMNS`."""
        with self._lock:
            entries = sorted(self._entries.items())
        rows = [
            {
                **entry.item.model_dump(),
                "genres": list(entry.item.genres),
                "available": entry.available,
            }
            for _, entry in entries
            if entry.item is not None
        ]
        return pl.DataFrame(rows, schema=ITEM_COLUMNS)


def _video_id(event: CatalogueEvent) -> str:
    return event.video_id if isinstance(event, ItemTakenDown) else event.item.video_id


def _fold(entry: _Entry, event: CatalogueEvent) -> _Entry:
    order = (event.event_time_ms, event.event_id)
    if isinstance(event, ItemTakenDown):
        return _Entry(order, entry.item, entry.item_order, False) if order > entry.order else entry
    item, item_order = (
        (event.item, order) if order > entry.item_order else (entry.item, entry.item_order)
    )
    available = True if order > entry.order else entry.available
    return _Entry(max(order, entry.order), item, item_order, available)


class CatalogueLog:
    """The catalogue's events on disk, one JSON object per line, each event_id once.

    Several processes may append (a file lock orders them); a line that a crash tore is
    cut off by the next append, and its event comes again with the topic's redelivery.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "catalogue.jsonl"
        self._seen: set[str] = set()
        self._read_to = 0

    def append(self, events: Iterable[CatalogueEvent]) -> int:
        """Writes the events that the log does not hold yet; returns how many those were."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file, _locked(file.fileno()):
            for event in self._unread(file.fileno()):
                self._seen.add(event.event_id)
            fresh = {e.event_id: e for e in events if e.event_id not in self._seen}
            file.truncate(self._read_to)
            lines = b"".join(CATALOGUE_EVENT.dump_json(e) + b"\n" for e in fresh.values())
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
            self._read_to += len(lines)
            self._seen.update(fresh)
            return len(fresh)

    def events(self) -> Iterator[CatalogueEvent]:
        """Every whole event of the log, in the order of arrival."""
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    yield CATALOGUE_EVENT.validate_json(line)

    def load(self) -> Catalogue:
        """The catalogue that the log adds up to; an empty one when there is no log."""
        catalogue = Catalogue()
        for event in self.events():
            catalogue.apply(event)
        return catalogue

    def _unread(self, descriptor: int) -> Iterator[CatalogueEvent]:
        rest = os.pread(descriptor, os.fstat(descriptor).st_size - self._read_to, self._read_to)
        whole = rest[: rest.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.splitlines():
            yield CATALOGUE_EVENT.validate_json(line)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def parse(record: Record) -> CatalogueEvent | None:
    """The event in a record of the topic `catalogue`; None when it holds none that is valid."""
    try:
        return CATALOGUE_EVENT.validate_json(record.value or b"")
    except ValidationError:
        return None


def follow(
    bus: Bus,
    take: Callable[[list[CatalogueEvent]], object],
    stop: threading.Event,
    *,
    group: str,
    refused: Callable[[Record], None] = lambda _: None,
) -> None:
    """Reads the topic `catalogue` from its start into `take` until `stop` is set.

    Commits after `take` has returned, so nothing is lost on a crash. A record that is
    not a catalogue event goes to `refused` and does not hold up the rest.
    """
    consumer = bus.consumer([CATALOGUE], group)
    try:
        while not stop.is_set():
            if records := consumer.poll(1_000, 0.2):
                events = [(record, parse(record)) for record in records]
                take([event for _, event in events if event is not None])
                for record in (r for r, event in events if event is None):
                    refused(record)
                consumer.commit(records)
    finally:
        consumer.close()
