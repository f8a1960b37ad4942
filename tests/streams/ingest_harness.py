"""The ingest loops on any bus, run step by step, and readers of what they wrote."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson
import polars as pl

from streams.bus.consume import Input
from streams.bus.contract import Bus, Outgoing
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.contract.clock import ManualClock
from streams.contract.schema import from_ipc
from streams.contract.topics import BEHAVIOUR, BEHAVIOUR_DEAD, EVENTS_BY_USER, topic_specs
from streams.ingest.admission import AdmissionLimits
from streams.ingest.dead_letters import parse_dead_letter
from streams.ingest.fanout import FanOut
from streams.ingest.loop import IngestConfig, IngestLoop
from streams.ingest.sequencer import Sequencer
from streams.ingest.service import Batcher

NOW = 1_750_000_000_000
PARTITIONS = 2


@dataclass
class IngestHarness:
    """A bus with all topics, and the ingest loops.

    `sole_consumer`: a single batcher, which marks duplicates itself; otherwise one of several.
    """

    bus: Bus
    transactional: bool
    sole_consumer: bool = True
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW))
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    group: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.producer = self.bus.producer()

    @property
    def config(self) -> IngestConfig:
        return IngestConfig(
            limits=self.limits,
            transactional=self.transactional,
            group=self.group,
            replicas=1 if self.sole_consumer else 2,
        )

    def batcher(self) -> Batcher:
        return Batcher(self.bus, self.clock, self.config)

    def loops(self) -> list[IngestLoop]:
        sequencer = [] if self.sole_consumer else [Sequencer(self.bus, self.clock, self.config)]
        return [self.batcher(), *sequencer, FanOut(self.bus, self.config)]

    def send(self, *values: bytes | None, **options: Any) -> None:
        self.producer.send([Outgoing(BEHAVIOUR, value, **options) for value in values])

    def run_until_done(self) -> None:
        """Runs every loop, as a restarted process would, until its input is committed.

        An empty poll is not enough: a busy broker may return none for a while.
        """
        for loop in self.loops():
            timeout_s = 0.01 if isinstance(self.bus, MemoryBus) else 0.2
            while loop.run_once(timeout_s) or not self._is_done(loop._input):
                pass
            loop.close()

    def _is_done(self, source: Input) -> bool:
        if not source.consumer.assignment_version():
            return False  # it has not joined its group
        committed = source.consumer.committed()
        return not any(
            next(
                self.bus.scan(
                    source.topic, partition, committed.get((source.topic, partition), start), stop
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
        dead = [parse_dead_letter(record) for record in self.records(BEHAVIOUR_DEAD)]
        return sorted(letter.cause.cause for letter in dead)

    def counted(self) -> list[str]:
        rows = self.rows()
        return sorted(rows.filter(~pl.col("duplicate"))["event_id"]) if len(rows) else []


def make_harness(bus: Bus, transactional: bool, sole_consumer: bool) -> IngestHarness:
    bus.ensure_topics(topic_specs(PARTITIONS))
    return IngestHarness(bus, transactional, sole_consumer)


def event(event_id: str, user: str = "u1", **fields: Any) -> bytes:
    body = {"kind": "play", "video_id": "v1", "event_time_ms": NOW, **fields}
    return orjson.dumps({"event_id": event_id, "user_id": user, **body})
