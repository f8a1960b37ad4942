"""What topics that began again have forgotten the log still knows: copies count once.

In one process, on the bus that ships as a fake, whose topics can begin again.
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
from streams.ingest.sequencer import Sequencer
from streams.ingest.service import Batcher

NOW_MS = 1_750_000_000_000
LIMITS = AdmissionLimits()
EVENT = {"event_id": "e", "user_id": "u", "kind": "play", "video_id": "v",
         "event_time_ms": NOW_MS}  # fmt: skip


@dataclass
class Mill:
    """A door of one process or of two, each life of it new, and the log behind it."""

    log: EventLog
    alone: bool
    bus: MemoryBus = field(default_factory=MemoryBus)
    clock: ManualClock = field(default_factory=lambda: ManualClock(NOW_MS))

    def __post_init__(self) -> None:
        self.bus.ensure_topics(topic_specs(1))

    def pass_on(self, event: dict[str, Any]) -> None:
        self.bus.producer().send([Outgoing(BEHAVIOUR, orjson.dumps(event), partition=0)])
        options = (self.bus, self.clock, LIMITS, True, "g", "0", self.log)
        loops = [Batcher(*options, alone=self.alone)]
        for loop in loops if self.alone else [*loops, Sequencer(*options)]:
            while loop.turn(0.01):
                pass
            loop.close()
        self._file()

    def _file(self) -> None:
        epoch = self.bus.epoch(EVENTS_BY_USER)
        for partition, (start, stop) in self.bus.ends(EVENTS_BY_USER).items():
            for record in self.bus.scan(EVENTS_BY_USER, partition, start, stop):
                stamp = Stamp(epoch, partition, record.offset)
                table = from_ipc(record.value or b"")
                self.log.append(Delivery(EVENTS_BY_USER, stamp, table))

    def marks(self) -> list[bool]:
        """Of each row of the log, in the order of arrival, whether it is a duplicate."""
        rows = self.log.read(duplicates=True).sort("ingested_at_ms", "duplicate")
        return rows["duplicate"].to_list()


@pytest.fixture(params=[True, False], ids=["one door", "two stages"])
def mill(request: pytest.FixtureRequest, tmp_path: Path) -> Mill:
    return Mill(EventLog(tmp_path), request.param)


@pytest.mark.parametrize("forgets", [False, True])
def test_a_copy_is_marked_also_after_the_topics_began_again(mill: Mill, forgets: bool) -> None:
    mill.pass_on(EVENT)
    for _ in range(2):  # the second time the copy itself is in the new epoch's log
        if forgets:
            mill.bus.restart()
        mill.clock.advance(1_000)
        mill.pass_on(EVENT)
    assert mill.marks() == [False, True, True]


def test_after_the_horizon_a_copy_counts_whichever_epoch_the_first_is_of(mill: Mill) -> None:
    mill.pass_on(EVENT)
    mill.bus.restart()
    mill.clock.advance(LIMITS.duplicate_horizon_ms // 2)
    mill.pass_on(EVENT)  # marked, and does not prolong what is remembered
    mill.clock.advance(LIMITS.duplicate_horizon_ms // 2 + 1)
    mill.pass_on(EVENT)
    assert mill.marks() == [False, True, False]


def test_another_users_event_of_the_same_id_is_no_copy(mill: Mill) -> None:
    mill.pass_on(EVENT)
    mill.bus.restart()
    mill.clock.advance(1_000)
    mill.pass_on(EVENT | {"user_id": "another"})
    assert mill.marks() == [False, False]


def test_in_one_life_a_copy_counts_once_until_its_own_horizon_has_passed(tmp_path: Path) -> None:
    """Also when what was read from the log is forgotten meanwhile."""
    mill, later = Mill(EventLog(tmp_path), alone=True), EVENT | {"event_id": "later"}
    mill.pass_on(EVENT)
    mill.bus.restart()
    door = Batcher(mill.bus, mill.clock, LIMITS, True, "g", "0", mill.log)
    half_ms = LIMITS.duplicate_horizon_ms // 2
    for event, wait_ms in ((later, half_ms), (EVENT, half_ms + 1), (EVENT, 1), (later, 1)):
        mill.clock.advance(wait_ms)
        mill.bus.producer().send([Outgoing(BEHAVIOUR, orjson.dumps(event), partition=0)])
        while door.turn(0.01):
            pass
    door.close()
    mill._file()
    assert mill.marks() == [False, False, False, True, True]
