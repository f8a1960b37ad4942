"""Sends rows to their topic, and goes on where an import stopped.

Knows topics and the file that remembers how far each place was sent. Rows carry the header of
replayed history: they count at their own time, are never late, and one sent twice counts once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from streams.bus.contract import Bus, Outgoing
from streams.contract.topics import BEHAVIOUR, CATALOGUE
from streams.imports.check import Verdict, kept
from streams.imports.mapping import Mapping
from streams.imports.source import Place
from streams.ingest.admission import REPLAY_HEADER

_HEADERS = {REPLAY_HEADER: b"1"}


@dataclass
class Progress:
    """How many rows of one place were sent under one mapping, and by how much times are shifted."""

    path: Path
    sent: int = 0
    shift_ms: int | None = None

    @classmethod
    def load(cls, folder: Path, place: Place, mapping: Mapping, topic_id: str) -> Progress:
        """Of this place, mapping and topic; a recreated topic begins anew."""
        text = json.dumps([place.key, _version(place), mapping.model_dump_json(), topic_id])
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        try:
            stored: dict[str, Any] = json.loads(path.read_text())
            return cls(path, int(stored["sent"]), stored["shift_ms"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls(path)

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps({"sent": self.sent, "shift_ms": self.shift_ms}))
        partial.replace(self.path)


def _version(place: Place) -> list[str]:
    """Differs between files of one name, and once a file is written to: that begins anew, and the
    rows which it still has keep their ids."""
    if place.is_database:
        return []
    path = Path(place.path).resolve()
    stat = path.stat()
    return [str(path), str(stat.st_size), str(stat.st_mtime_ns)]


def topic_of(mapping: Mapping) -> str:
    return CATALOGUE if mapping.target == "items" else BEHAVIOUR


def send(
    bus: Bus,
    pieces: Iterator[pa.RecordBatch],
    mapping: Mapping,
    progress: Progress,
    advance: Callable[[int], None],
) -> Verdict:
    """Sends what was not sent yet; counts what the mapping leaves out.

    Raises:
        streams.bus.contract.BusError: the broker refused or is down; calling again resumes.
    """
    topic, done = topic_of(mapping), Verdict()
    producer = bus.producer()
    try:
        for piece in pieces:
            last = int(piece["row"][-1].as_py())
            if last <= progress.sent:
                continue
            fresh = piece.filter(pa.compute.greater(piece["row"], progress.sent))
            rows = kept(fresh, done)
            producer.send([Outgoing(topic, body, key, headers=_HEADERS) for key, body in rows])
            progress.sent = last
            progress.save()
            advance(last)
    finally:
        producer.close()
    return done
