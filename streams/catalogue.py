"""The catalogue: a fold of item events, and the file that keeps those events.

Knows which items exist, their descriptions and whether they may be shown. Does not know users.
The fold follows the order of the topic: of two events on one item the later one in the log wins,
whatever their producers' clocks say. Each event counts once, so a replay or a second copy of the
topic changes nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import xxhash

from streams.bus.consume import consume
from streams.bus.contract import Bus
from streams.bus.polled import Record
from streams.codec.decode import Rejection
from streams.codec.inputs import (
    OnRejected,
    apply_valid,
    log_rejected,
    no_limit,
    reject_future,
    validate_message,
    validate_record,
)
from streams.contract.attributes import AttributeDeclaration, AttributeDeclarations
from streams.contract.declaration import contract
from streams.contract.items import (
    CATALOGUE_EVENT,
    RENAMED,
    CatalogueEvent,
    CatalogueItem,
    ItemTakenDown,
)
from streams.contract.topics import CATALOGUE
from streams.telemetry import set_aside

_ENVELOPE = (
    'an item needs its envelope: {"kind": "item_added", "event_id": "...", "event_time_ms": '
    '1700000000000, "item": {...}}'
)
_MERGED_AT = 16_384  # recent keys

_Type = pl.DataType | type[pl.DataType]


def _column_types() -> dict[str, _Type]:
    """Every field of an item but its attributes, by the type of its default."""
    columns: dict[str, _Type] = {}
    for name, field in CatalogueItem.model_fields.items():
        if name not in ("attributes", "undeclared"):
            number = isinstance(field.default, int)
            many = isinstance(field.default, tuple)
            kind: _Type = pl.Int64 if number else pl.List(pl.String) if many else pl.String
            columns[RENAMED.get(name, name)] = kind
    return columns | {"available": pl.Boolean}


ITEM_COLUMNS = _column_types()
"""The columns of `Catalogue.to_frame`; the id and the categories have version 1's names there, as
event columns and stored models do. `attributes` is added where any is declared."""


def attributes_type(declarations: AttributeDeclarations) -> pl.Struct:
    """The type of the column `attributes`: one field for each declared attribute."""
    return pl.Struct({n: _attribute_type(d) for n, d in declarations.declared.items()})


def _attribute_type(declaration: AttributeDeclaration) -> _Type:
    types: dict[str, _Type] = {
        "number": pl.Float64,
        "text": pl.String,
        "label": pl.String,
        "labels": pl.List(pl.String),
        "flag": pl.Boolean,
        "vector": pl.Array(pl.Float32, declaration.length or 0),
    }
    return types[declaration.type]


@dataclass(frozen=True, slots=True)
class _Entry:
    item: CatalogueItem | None  # None: taken down, never described
    available: bool


_UNKNOWN = _Entry(None, False)


class _SeenEvents:
    """Which events were folded, as 64-bit hashes of (item, event id, time): 8 bytes each."""

    def __init__(self) -> None:
        self._merged = np.empty(0, np.uint64)  # ascending
        self._recent: set[int] = set()

    def __contains__(self, event: CatalogueEvent) -> bool:
        return self._has(_event_key(event))

    def add(self, event: CatalogueEvent) -> bool:
        """False if it was seen before."""
        key = _event_key(event)
        if self._has(key):
            return False
        self._recent.add(key)
        if len(self._recent) >= _MERGED_AT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._merged = np.sort(np.concatenate([self._merged, recent]))
            self._recent.clear()
        return True

    def _has(self, key: int) -> bool:
        if key in self._recent:
            return True
        at = int(np.searchsorted(self._merged, np.uint64(key)))
        return at < len(self._merged) and int(self._merged[at]) == key


class Catalogue:
    """The fold of the catalogue events. Many threads may read while one applies."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._seen = _SeenEvents()
        self._genres: dict[str, str] = {}  # one string for each genre, however many items have it
        self._version = 0
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """Grows by one with every event that changes something."""
        return self._version

    def apply(self, event: CatalogueEvent) -> bool:
        """Folds one event; False if it changed nothing (a repeat, or what is known already)."""
        with self._lock:
            if not self._seen.add(event):
                return False
            item_id = item_id_of(event)
            before = self._entries.get(item_id, _UNKNOWN)
            after = _fold(before, event)
            if after == before:
                return False
            if after.item is not None and after.item is not before.item:
                after = replace(after, item=self._with_shared_genres(after.item))
            self._entries[item_id] = after
            self._version += 1
            return True

    def would_change(self, event: CatalogueEvent) -> bool:
        """Whether the event, as the next one of the log, would change anything."""
        before = self._entries.get(item_id_of(event), _UNKNOWN)
        return event not in self._seen and _fold(before, event) != before

    def _with_shared_genres(self, item: CatalogueItem) -> CatalogueItem:
        if not item.genres:
            return item
        genres = tuple(self._genres.setdefault(genre, genre) for genre in item.genres)
        return item.model_copy(update={"categories": genres})

    def get(self, item_id: str) -> CatalogueItem | None:
        """An item's description, even if it was taken down; None if it was never described."""
        entry = self._entries.get(item_id)
        return entry.item if entry else None

    def available(self, item_id: str) -> bool:
        """Whether the item may be shown. False for an unknown one."""
        entry = self._entries.get(item_id)
        return entry is not None and entry.available

    def available_ids(self) -> list[str]:
        """The items that may be shown, sorted."""
        with self._lock:
            return sorted(item_id for item_id, entry in self._entries.items() if entry.available)

    def taken_down_ids(self) -> list[str]:
        """The items that are known and may not be shown, in the order in which they were added."""
        with self._lock:
            return [item_id for item_id, entry in self._entries.items() if not entry.available]

    def __len__(self) -> int:
        return len(self._entries)

    def to_frame(self) -> pl.DataFrame:
        """`items_frame` of every described item, sorted by video_id."""
        with self._lock:
            entries = sorted(self._entries.items())
        return items_frame((e.item, e.available) for _, e in entries if e.item is not None)

    def contradictions(self, declarations: AttributeDeclarations) -> dict[str, tuple[int, str]]:
        """Declared attributes that stored items contradict: how many, and of one its id and why."""
        found: dict[str, tuple[int, str]] = {}
        with self._lock:
            items = [entry.item for entry in self._entries.values() if entry.item is not None]
        for item in items:
            for name in item.attributes.keys() & declarations.declared.keys():
                if problem := declarations.declared[name].problem(item.attributes[name]):
                    count, example = found.get(name, (0, f"{item.item_id}: {problem}"))
                    found[name] = count + 1, example
        return found


def items_frame(items: Iterable[tuple[CatalogueItem, bool]]) -> pl.DataFrame:
    """One row for each item and whether it is available: `ITEM_COLUMNS`.

    With declared attributes also `attributes`: a struct with a field for each, null where an item
    has none or one that does not fit its declaration.
    """
    declarations = contract().items
    schema = dict(ITEM_COLUMNS)
    if declarations.declared:
        schema["attributes"] = attributes_type(declarations)
    rows = [_row(item, available, declarations) for item, available in items]
    return pl.DataFrame(rows, schema=schema)


def _row(
    item: CatalogueItem, available: bool, declarations: AttributeDeclarations
) -> dict[str, object]:
    stated = item.model_dump(exclude={"attributes", "undeclared"})
    row = {RENAMED.get(name, name): value for name, value in stated.items()}
    row |= {"genres": list(item.categories), "available": available}
    if declarations.declared:
        row["attributes"] = declarations.conforming(item.attributes)
    return row


def item_id_of(event: CatalogueEvent) -> str:
    return event.item_id if isinstance(event, ItemTakenDown) else event.item.item_id


def _event_key(event: CatalogueEvent) -> int:
    stated = f"{item_id_of(event)}\0{event.event_id}\0{event.event_time_ms}"
    return xxhash.xxh3_64_intdigest(stated.encode())


def _fold(entry: _Entry, event: CatalogueEvent) -> _Entry:
    if isinstance(event, ItemTakenDown):
        return _Entry(entry.item, False)
    return _Entry(event.item, event.item.availability != "out_of_stock")


class CatalogueLog:
    """The catalogue's events on disk, one JSON object per line, each event once.

    Several processes may append, ordered by a file lock. The next append cuts off a line that a
    crash tore; the topic delivers its event again. A line that is no valid event is set aside.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "catalogue.jsonl"
        self._seen = _SeenEvents()
        self._read_to = 0

    def append(self, events: Iterable[CatalogueEvent]) -> int:
        """Writes the events that are new to the log; returns their number.

        Raises OSError (disk full); the events may then be appended again.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file, _locked(file.fileno()):
            for event in self._unread(file.fileno()):
                self._seen.add(event)
            fresh = {_event_key(e): e for e in events if e not in self._seen}
            file.truncate(self._read_to)
            lines = b"".join(CATALOGUE_EVENT.dump_json(e) + b"\n" for e in fresh.values())
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
            self._read_to += len(lines)
            for event in fresh.values():
                self._seen.add(event)
            return len(fresh)

    def events(self) -> Iterator[CatalogueEvent]:
        """Every complete and valid event of the log, in the order of arrival."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                yield from self._valid(file, 0)

    def load(self) -> Catalogue:
        """The fold of the log; empty if there is no log."""
        catalogue = Catalogue()
        for event in self.events():
            catalogue.apply(event)
        return catalogue

    def _unread(self, descriptor: int) -> Iterator[CatalogueEvent]:
        size = os.fstat(descriptor).st_size
        if size < self._read_to:  # cut by hand: the topic's events are appended again
            self._read_to, self._seen = 0, _SeenEvents()
        rest = os.pread(descriptor, size - self._read_to, self._read_to)
        whole = rest[: rest.rfind(b"\n") + 1]
        start, self._read_to = self._read_to, self._read_to + len(whole)
        yield from self._valid((line + b"\n" for line in whole.split(b"\n")[:-1]), start)

    def _valid(self, lines: Iterable[bytes], start: int) -> Iterator[CatalogueEvent]:
        """The events of the lines; the first one begins at byte `start` of the file."""
        for line in lines:
            if line.endswith(b"\n"):
                event = validate_message(CATALOGUE_EVENT, line)
                if isinstance(event, Rejection):
                    name = f"the line at byte {start} of {self.path}"
                    set_aside("catalogue_line", name, f"{event.cause}, {event.detail}")
                else:
                    yield event
            start += len(line)


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def parse_catalogue_event(record: Record, latest_ms: int) -> CatalogueEvent | Rejection:
    """The event in a record of the topic `catalogue`, or why it is none.

    `latest_ms`: the largest time that it may state (`streams.contract.bounds.future_limit_ms`).
    There is no limit in the past: the topic is kept forever and read from its start.
    Attributes are checked by the declarations in force (`streams.contract.declaration`).
    """
    event = validate_record(CATALOGUE_EVENT, record, _ENVELOPE, contract().items)
    if isinstance(event, Rejection):
        return event
    times = {"event_time_ms": event.event_time_ms}
    if not isinstance(event, ItemTakenDown):
        times["created_ms"] = event.item.created_ms
    return reject_future(times, latest_ms) or event


def consume_catalogue(
    bus: Bus,
    take: Callable[[list[CatalogueEvent]], object],
    stop: threading.Event,
    *,
    group: str,
    latest_ms: Callable[[], int] = no_limit,
    on_rejected: OnRejected = log_rejected,
) -> None:
    """Passes the events of the topic `catalogue`, from its start, to `take` until `stop` is set.

    Commits after `take` has returned, so a crash loses nothing. A record that is no valid event,
    or that `take` cannot apply, goes to `on_rejected` and does not block the others. An OSError
    of `take` is retried.
    """

    def process(records: Sequence[Record]) -> bool:
        latest = latest_ms()
        rejected = apply_valid(
            records, lambda record: parse_catalogue_event(record, latest), take, stop
        )
        if rejected:
            on_rejected(rejected)
        return rejected is not None

    consume(bus, CATALOGUE, group, process, stop)
