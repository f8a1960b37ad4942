"""Loads the history through the front door: catalogue and behaviour onto the broker.

Knows the bus, the wire format and how far it got. Does not know what admission
makes of it. Records carry the header `tidemill-replay: 1`: admission takes their
event time as their arrival time, so that loaded history is not late.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import orjson

from deploy.simulation.history import History
from deploy.simulation.movielens import LAST_RATING_MS
from streams.bus.contract import Bus, Outgoing, Producer
from streams.contract.events import CatalogueItem, ItemAdded
from streams.contract.topics import BEHAVIOUR, CATALOGUE

HEADERS = {"tidemill-replay": b"1"}
BATCH = 5_000  # records per write: big enough to be quick, small enough for a live bar
STATE_FILE = "replay.json"

Progress = Callable[[int, int], None]
"""Called with the events sent so far and the events in all."""


@dataclass(frozen=True)
class Mark:
    """How far a replay got, and on which topic and history."""

    epoch: str
    shift_ms: int
    sent: int

    @property
    def end_ms(self) -> int:
        """Where the history's last rating was put."""
        return self.shift_ms + LAST_RATING_MS

    def save(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        part = home / f"{STATE_FILE}.part"
        part.write_text(json.dumps(self.__dict__))
        part.replace(home / STATE_FILE)

    @classmethod
    def load(cls, home: Path) -> Mark | None:
        try:
            return cls(**json.loads((home / STATE_FILE).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None


def replay(bus: Bus, past: History, home: Path, *, progress: Progress, log_dir: Path) -> int:
    """Sends the catalogue and every event not sent yet; returns the events sent now.

    Resumable: on the same topic it goes on where it stopped (the last batch may be
    sent twice; admission drops duplicates). Where the broker began anew, what the
    event log already holds is left out, so that nothing is counted twice.

    Raises:
        streams.bus.contract.BusError: the broker refused or is down; calling again resumes.
        OtherHistory: this home holds a replay that was shifted to another time.
    """
    mark = Mark.load(home)
    if mark is not None and mark.shift_ms != past.shift_ms:
        raise OtherHistory(
            f"{home} holds a history shifted by {mark.shift_ms} ms, not {past.shift_ms} ms: "
            "replay with the same end, or start a fresh home (TIDEMILL_HOME)"
        )
    if mark is not None and mark.sent == len(past.frame):
        progress(mark.sent, mark.sent)
        return 0
    epoch = bus.epoch(BEHAVIOUR)
    same = mark is not None and mark.epoch == epoch
    start = mark.sent if mark is not None and same else 0
    known = _logged(log_dir) if mark is not None and not same else frozenset[str]()
    producer = bus.producer()
    try:
        producer.send(list(_catalogue_records(past.items)))
        return _send_events(producer, past, home, epoch, start, known, progress)
    finally:
        producer.close()


class OtherHistory(RuntimeError):
    """The home holds the same people's history at another place in time."""


def _send_events(
    producer: Producer,
    past: History,
    home: Path,
    epoch: str,
    start: int,
    known: frozenset[str],
    progress: Progress,
) -> int:
    total, done, written = len(past.frame), start, 0
    events = past.events(start)
    progress(done, total)
    while batch := list(islice(events, BATCH)):
        fresh = [_record(event) for event in batch if event["event_id"] not in known]
        producer.send(fresh)
        done, written = done + len(batch), written + len(fresh)
        Mark(epoch, past.shift_ms, done).save(home)
        progress(done, total)
    return written


def _record(event: dict[str, object]) -> Outgoing:
    key = str(event["user_id"]).encode()
    return Outgoing(BEHAVIOUR, orjson.dumps(event), key=key, headers=HEADERS)


def _catalogue_records(items: list[CatalogueItem]) -> Iterator[Outgoing]:
    """Sending an item again changes nothing: the catalogue is a fold that replaces."""
    for item in items:
        added = ItemAdded(
            event_id=f"ml:{item.video_id}:added", event_time_ms=item.created_ms, item=item
        )
        yield Outgoing(
            CATALOGUE,
            added.model_dump_json().encode(),
            key=item.video_id.encode(),
            headers=HEADERS,
        )


def _logged(log_dir: Path) -> frozenset[str]:
    """Event ids of the history that the event log holds already."""
    from streams.event_log import EventLog

    held = EventLog(log_dir).read(duplicates=True)["event_id"]
    return frozenset(held.filter(held.str.starts_with("ml:")))
