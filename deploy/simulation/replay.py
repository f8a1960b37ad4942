"""Sends the history to the broker: the catalogue and the events.

Knows the bus, the wire format and how much was sent. Does not know which events are
admitted. Records carry the header `tidemill-replay: 1`: admission takes their event time as
their arrival time, so loaded history is not late.
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
WRITE_RECORDS = 5_000  # per write: large enough to be fast, small enough to report progress
STATE_FILE = "replay.json"


@dataclass(frozen=True)
class ReplayState:
    """How many events a replay has sent, on which topic and of which history."""

    topic_id: str
    shift_ms: int
    sent: int

    @property
    def end_ms(self) -> int:
        """Time of the history's last rating."""
        return self.shift_ms + LAST_RATING_MS

    def save(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        part = home / f"{STATE_FILE}.part"
        body = {"epoch": self.topic_id, "shift_ms": self.shift_ms, "sent": self.sent}
        part.write_text(json.dumps(body))
        part.replace(home / STATE_FILE)

    @classmethod
    def load(cls, home: Path) -> ReplayState | None:
        try:
            body = json.loads((home / STATE_FILE).read_text(encoding="utf-8"))
            return cls(body["epoch"], body["shift_ms"], body["sent"])
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None


def replay(
    bus: Bus, past: History, home: Path, *, progress: Callable[[int], None], log_dir: Path
) -> int:
    """Sends the catalogue and every event not sent yet; returns the events sent now.

    Resumable: on the same topic it continues where it stopped (the last write may be sent
    twice; the ingest service marks duplicates). If the topic was recreated, events that the log
    already holds are left out, so that none is counted twice.

    Raises:
        streams.bus.contract.BusError: the broker refused or is down; calling again resumes.
        OtherHistory: this home holds a replay that was shifted to another time.
    """
    saved = ReplayState.load(home)
    if saved is not None and saved.shift_ms != past.shift_ms:
        raise OtherHistory(
            f"{home} holds a history shifted by {saved.shift_ms} ms, not {past.shift_ms} ms: "
            "replay with the same end, or start a fresh home (TIDEMILL_HOME)"
        )
    if saved is not None and saved.sent == len(past.frame):
        progress(saved.sent)
        return 0
    topic_id = bus.topic_id(BEHAVIOUR)
    same = saved is not None and saved.topic_id == topic_id
    start = saved.sent if saved is not None and same else 0
    known = _logged(log_dir) if saved is not None and not same else frozenset[str]()
    producer = bus.producer()
    try:
        producer.send(list(_catalogue_records(past.items)))
        return _send_events(producer, past, home, topic_id, start, known, progress)
    finally:
        producer.close()


class OtherHistory(RuntimeError):
    """The home holds the same history, shifted to another time."""


def _send_events(
    producer: Producer,
    past: History,
    home: Path,
    topic_id: str,
    start: int,
    known: frozenset[str],
    progress: Callable[[int], None],
) -> int:
    done, written = start, 0
    events = past.events(start)
    progress(done)
    while batch := list(islice(events, WRITE_RECORDS)):
        fresh = [_record(event) for event in batch if event["event_id"] not in known]
        producer.send(fresh)
        done, written = done + len(batch), written + len(fresh)
        ReplayState(topic_id, past.shift_ms, done).save(home)
        progress(done)
    return written


def _record(event: dict[str, object]) -> Outgoing:
    key = str(event["user_id"]).encode()
    return Outgoing(BEHAVIOUR, orjson.dumps(event), key=key, headers=HEADERS)


def _catalogue_records(items: list[CatalogueItem]) -> Iterator[Outgoing]:
    """Items may be sent again: the newest version of an item replaces the others."""
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
