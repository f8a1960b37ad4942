"""Duplicates of events from before the topics were recreated are found in the log.

In one process, on the memory bus, whose topics can be recreated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from streams.bus.contract import Outgoing, Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.contract.clock import ManualClock
from streams.contract.schema import from_ipc
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER, topic_specs
from streams.event_log import EventLog
from streams.ingest.admission import AdmissionLimits
from streams.ingest.loop import IngestConfig, IngestLoop
from streams.ingest.sequencer import Sequencer
from streams.ingest.service import Batcher

NOW_MS = 1_750_000_000_000
LIMITS = AdmissionLimits()
EVENT = {"event_id": "e", "user_id": "u", "kind": "play", "video_id": "v",
         "event_time_ms": NOW_MS}  # fmt: skip


@dataclass
class IngestHarness:
    """A batcher (and a sequencer), recreated for each event, and the log behind them."""

    log: EventLog
    sole_consumer: bool
    bus: MemoryBus = field(default_factory=MemoryBus)
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW_MS))

    def __post_init__(self) -> None:
        self.bus.ensure_topics(topic_specs(1))

    def ingest(self, event: dict[str, Any]) -> None:
        self.bus.producer().send([Outgoing(BEHAVIOUR, orjson.dumps(event), partition=0)])
        config = IngestConfig(replicas=1 if self.sole_consumer else 2)
        options = (self.bus, self.clock, config, self.log)
        loops: list[IngestLoop] = [Batcher(*options)]
        for loop in loops if self.sole_consumer else [*loops, Sequencer(*options)]:
            while loop.run_once(0.01):
                pass
            loop.close()
        self.append_to_log()

    def append_to_log(self) -> None:
        topic_id = self.bus.topic_id(EVENTS_BY_USER)
        for partition, (start, stop) in self.bus.ends(EVENTS_BY_USER).items():
            for record in self.bus.scan(EVENTS_BY_USER, partition, start, stop):
                stamp = Stamp(topic_id, partition, record.offset)
                table = from_ipc(record.value or b"")
                self.log.append(Delivery(EVENTS_BY_USER, stamp, table))

    def duplicates(self) -> list[bool]:
        """Whether each row of the log is a duplicate, in the order of arrival."""
        rows = self.log.read(duplicates=True).sort("ingested_at_ms", "duplicate")
        return rows["duplicate"].to_list()


@pytest.fixture(params=[True, False], ids=["sole batcher", "sequencer"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> IngestHarness:
    return IngestHarness(EventLog(tmp_path), request.param)


@pytest.mark.parametrize("recreated", [False, True])
def test_a_duplicate_is_marked_after_its_topics_were_recreated(
    harness: IngestHarness, recreated: bool
) -> None:
    harness.ingest(EVENT)
    for _ in range(2):  # the second time, the log has the duplicate itself too
        if recreated:
            harness.bus.restart()
        harness.clock.advance(1_000)
        harness.ingest(EVENT)
    assert harness.duplicates() == [False, True, True]


def test_past_the_horizon_a_copy_counts_again(harness: IngestHarness) -> None:
    harness.ingest(EVENT)
    harness.bus.restart()
    harness.clock.advance(LIMITS.duplicate_horizon_ms // 2)
    harness.ingest(EVENT)  # marked, and does not extend the horizon
    harness.clock.advance(LIMITS.duplicate_horizon_ms // 2 + 1)
    harness.ingest(EVENT)
    assert harness.duplicates() == [False, True, False]


def test_another_users_event_with_the_same_id_is_no_duplicate(harness: IngestHarness) -> None:
    harness.ingest(EVENT)
    harness.bus.restart()
    harness.clock.advance(1_000)
    harness.ingest(EVENT | {"user_id": "another"})
    assert harness.duplicates() == [False, False]


def test_within_one_process_the_horizon_of_each_key_holds(tmp_path: Path) -> None:
    """Also when the keys that were read from the log are dropped meanwhile."""
    harness = IngestHarness(EventLog(tmp_path), sole_consumer=True)
    later = EVENT | {"event_id": "later"}
    harness.ingest(EVENT)
    harness.bus.restart()
    batcher = Batcher(harness.bus, harness.clock, IngestConfig(), harness.log)
    half_ms = LIMITS.duplicate_horizon_ms // 2
    for event, wait_ms in ((later, half_ms), (EVENT, half_ms + 1), (EVENT, 1), (later, 1)):
        harness.clock.advance(wait_ms)
        harness.bus.producer().send([Outgoing(BEHAVIOUR, orjson.dumps(event), partition=0)])
        while batcher.run_once(0.01):
            pass
    batcher.close()
    harness.append_to_log()
    assert harness.duplicates() == [False, False, False, True, True]
