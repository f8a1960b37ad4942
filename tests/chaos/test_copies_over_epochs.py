"""What a broker's loss costs today: a copy that is sent after it is not known for one.

In one process, on the bus that ships as a fake, whose topics can begin again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson
import pytest

from streams.admission import AdmissionLimits
from streams.batcher import Batcher
from streams.bus import Outgoing, Stamp
from streams.clock import ManualClock
from streams.delivery import Delivery
from streams.log import EventLog
from streams.memory_bus import MemoryBus
from streams.schema import from_ipc
from streams.topics import BEHAVIOUR, EVENTS_BY_USER, topic_specs

NOW_MS = 1_750_000_000_000


def _run(bus: MemoryBus, log: EventLog, value: bytes) -> None:
    """One message through the door and into the log."""
    bus.producer().send([Outgoing(BEHAVIOUR, value, partition=0)])
    clock, limits = ManualClock(NOW_MS), AdmissionLimits()
    door = Batcher(bus, clock, limits)
    while door.turn(0.01):
        pass
    door.close()
    epoch = bus.epoch(EVENTS_BY_USER)
    for partition, (start, stop) in bus.ends(EVENTS_BY_USER).items():
        for record in bus.scan(EVENTS_BY_USER, partition, start, stop):
            stamp = Stamp(epoch, partition, record.offset)
            log.append(Delivery(EVENTS_BY_USER, stamp, from_ipc(record.value or b"")))


@pytest.mark.parametrize(
    "forgets",
    [
        False,
        pytest.param(
            True,
            marks=pytest.mark.xfail(
                strict=False,
                reason="the door's memory is events.by_user alone and goes with its epoch; "
                "it would have to read the log's last day as well",
            ),
        ),
    ],
)
def test_a_copy_is_marked_also_after_the_topics_began_again(forgets: bool, tmp_path: Path) -> None:
    bus, log = MemoryBus(), EventLog(tmp_path)
    bus.ensure_topics(topic_specs(1))
    event = {"event_id": "e", "user_id": "u", "kind": "play", "video_id": "v",
             "event_time_ms": NOW_MS}  # fmt: skip
    _run(bus, log, orjson.dumps(event))
    if forgets:
        bus.restart()
    _run(bus, log, orjson.dumps(event))
    rows = log.read(duplicates=True)
    assert Counter(rows["duplicate"].to_list()) == {False: 1, True: 1}
