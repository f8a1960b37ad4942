"""The loops of the door on any bus, run by hand, and what lies in its topics afterwards."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson
import polars as pl

from streams.bus.consume import Input
from streams.bus.contract import Bus, Outgoing, Record
from streams.bus.memory import MemoryBus
from streams.contract.clock import ManualClock
from streams.contract.schema import from_ipc
from streams.contract.topics import BEHAVIOUR, BEHAVIOUR_DEAD, EVENTS_BY_USER, topic_specs
from streams.ingest import dead_letters
from streams.ingest.admission import AdmissionLimits
from streams.ingest.fanout import FanOut
from streams.ingest.sequencer import Sequencer
from streams.ingest.service import Batcher

NOW = 1_750_000_000_000
PARTITIONS = 2


@dataclass
class Mill:
    """A bus with all topics, and the loops of the door, run by hand.

    `alone`: the only door, which decides duplicates itself; otherwise one of many.
    """

    bus: Bus
    transactional: bool
    alone: bool = True
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    group: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.producer = self.bus.producer()

    def options(self) -> tuple[Bus, ManualClock, AdmissionLimits, bool, str]:
        return (self.bus, self.clock, self.limits, self.transactional, self.group)

    def batcher(self) -> Batcher:
        return Batcher(*self.options(), alone=self.alone)

    def loops(self) -> list[Batcher | Sequencer | FanOut]:
        behind = [] if self.alone else [Sequencer(*self.options())]
        fanout = FanOut(self.bus, self.transactional, self.group)
        return [self.batcher(), *behind, fanout]

    def send(self, *values: bytes | None, **place: Any) -> None:
        self.producer.send([Outgoing(BEHAVIOUR, value, **place) for value in values])

    def run_until_quiet(self) -> None:
        """Every loop as a new process, until it finds nothing more.

        A broker with no time left answers nothing for a while: so a loop is done when nothing
        lies behind what it marked as done.
        """
        for loop in self.loops():
            wait_s = 0.01 if isinstance(self.bus, MemoryBus) else 0.2
            while loop.turn(wait_s) or not self._done(loop._input):
                pass
            loop.close()

    def _done(self, source: Input) -> bool:
        if not source.consumer.generation():
            return False  # it has not joined its group
        marked = source.consumer.committed()
        return not any(
            next(
                self.bus.scan(
                    source.topic, partition, marked.get((source.topic, partition), start), stop
                ),
                None,
            )
            for partition, (start, stop) in self.bus.ends(source.topic).items()
        )

    def records(self, topic: str) -> list[Record]:
        return [
            record
            for partition, (start, stop) in self.bus.ends(topic).items()
            for record in self.bus.scan(topic, partition, start, stop)
        ]

    def rows(self, topic: str = EVENTS_BY_USER) -> pl.DataFrame:
        frames = [
            pl.DataFrame(from_ipc(record.value or b"")).with_columns(at=record.partition)
            for record in self.records(topic)
        ]
        return pl.concat(frames) if frames else pl.DataFrame(schema=["event_id", "duplicate"])

    def causes(self) -> list[str]:
        letters = [dead_letters.read_letter(r) for r in self.records(BEHAVIOUR_DEAD)]
        return sorted(letter.cause.cause for letter in letters)

    def counted(self) -> list[str]:
        rows = self.rows()
        return sorted(rows.filter(~pl.col("duplicate"))["event_id"]) if len(rows) else []


def make_mill(bus: Bus, transactional: bool, alone: bool) -> Mill:
    bus.ensure_topics(topic_specs(PARTITIONS))
    return Mill(bus, transactional, alone)


def event(event_id: str, user: str = "u1", **fields: Any) -> bytes:
    body = {"kind": "play", "video_id": "v1", "event_time_ms": NOW, **fields}
    return orjson.dumps({"event_id": event_id, "user_id": user, **body})
