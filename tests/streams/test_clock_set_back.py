"""The stack's clock is set back by an hour, and the catalogue's disk is full: nothing is lost."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from ingest_harness import NOW, IngestHarness, make_harness

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.bus.memory import MemoryBus
from streams.catalogue import CatalogueLog
from streams.contract.clock import HOUR_MS
from streams.contract.events import CATALOGUE_EVENT, CatalogueEvent
from streams.contract.schema import from_ipc
from streams.contract.topics import EVENTS_BY_USER
from streams.event_log import EventLog

SPACE = 64_000  # the largest file, in bytes, while the disk is full


def _event(event_id: str, at_ms: int) -> bytes:
    fields = {"event_id": event_id, "user_id": "u1", "kind": "play", "video_id": "v1"}
    return orjson.dumps(fields | {"event_time_ms": at_ms})


@pytest.fixture
def harness() -> IngestHarness:
    return make_harness(MemoryBus(), True, True)


def _log_all(harness: IngestHarness, log: EventLog) -> list[str]:
    """Delivers everything to the log from the start, as a restarted worker may."""
    topic_id = harness.bus.topic_id(EVENTS_BY_USER)
    for record in harness.records(EVENTS_BY_USER):
        stamp = Stamp(topic_id, record.partition, record.offset)
        log.append(Delivery(EVENTS_BY_USER, stamp, from_ipc(record.value or b"")))
    return sorted(log.read()["event_id"])


def test_events_before_and_after_a_clock_set_back_are_counted_once(
    harness: IngestHarness, tmp_path: Path
) -> None:
    log = EventLog(tmp_path)
    harness.send(_event("before", NOW))
    harness.run_until_done()
    assert _log_all(harness, log) == ["before"]

    harness.clock.advance(-HOUR_MS)
    harness.send(_event("after", NOW - HOUR_MS), _event("late", NOW - 2 * HOUR_MS))
    harness.send(_event("after", NOW - HOUR_MS))
    harness.run_until_done()
    assert harness.counted() == ["after", "before", "late"]
    assert _log_all(harness, log) == ["after", "before", "late"]
    log.flush()
    assert _log_all(harness, log) == ["after", "before", "late"]

    harness.send(_event("ahead", NOW))  # of a client whose clock was not set back
    harness.run_until_done()
    assert harness.causes() == ["future"]

    harness.clock.advance(HOUR_MS)
    harness.send(_event("after", NOW - HOUR_MS), _event("before", NOW), _event("again", NOW))
    harness.run_until_done()
    assert harness.counted() == ["after", "again", "before", "late"]
    assert _log_all(harness, log) == ["after", "again", "before", "late"]


@contextmanager
def _full_disk() -> Iterator[None]:
    resource.prlimit(0, resource.RLIMIT_FSIZE, (SPACE, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(0, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def _item(number: int) -> CatalogueEvent:
    item: dict[str, Any] = {"video_id": f"v{number}", "title": "x" * 500}
    body = {"kind": "item_added", "event_id": f"e{number}", "event_time_ms": NOW, "item": item}
    return CATALOGUE_EVENT.validate_python(body)


def test_a_full_disk_under_the_catalogues_file_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the write stops in the middle of a line."""
    log = CatalogueLog(tmp_path)
    assert log.append([_item(0)]) == 1
    batch = [_item(number) for number in range(1, SPACE // 400)]
    with _full_disk():
        for _ in range(3):
            with pytest.raises(OSError, match="File too large"):
                log.append(batch)
            # The lines that fitted are whole or ignored by readers, also of another process.
            assert {"v0"} <= set(CatalogueLog(tmp_path).load().available_ids())
        assert log.append([_item(1)]) == 0, "the lines that fitted are stored"
    assert 0 < log.append(batch) < len(batch)
    assert CatalogueLog(tmp_path).append(batch) == 0
    stored = [event.event_id for event in CatalogueLog(tmp_path).events()]
    assert sorted(stored) == sorted({"e0", *(each.event_id for each in batch)})
