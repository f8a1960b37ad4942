"""What one user may contribute: likes of an item count once a day, a rush of actions is capped."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from streams.bus.memory import MemoryBus
from streams.contract.clock import DAY_MS
from streams.contract.topics import topic_specs
from streams.ingest.admission import AdmissionLimits
from tests.streams.ingest_harness import NOW, PARTITIONS, IngestHarness, event

LIMITS = AdmissionLimits(idempotent=("like",), actions_a_minute=20)


@pytest.fixture(params=[True, False], ids=["sole batcher", "sequencer"])
def harness(request: pytest.FixtureRequest) -> IngestHarness:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(PARTITIONS))
    return IngestHarness(bus, True, sole_consumer=request.param, limits=LIMITS)


def _like(number: int, user: str = "u1", item: str = "v1", **other: object) -> bytes:
    stated = {"kind": "like", "video_id": item, "event_time_ms": NOW - 1_000} | other
    return event(f"e{number:03}", user, **stated)


def _capped(cause: str) -> float:
    return REGISTRY.get_sample_value("tidemill_events_capped_total", {"cause": cause}) or 0.0


def test_a_hundred_likes_of_one_item_count_once_and_are_counted(harness: IngestHarness) -> None:
    before = _capped("repeated")
    harness.send(*map(_like, range(100)))
    harness.run_until_done()
    assert harness.counted() == ["e000"]
    assert len(harness.rows()) == 100, "they stay in the log, marked"
    assert _capped("repeated") == before + 99


def test_the_cap_is_of_one_user_one_item_and_one_kind(harness: IngestHarness) -> None:
    harness.send(_like(1), _like(2, "u2"), _like(3, item="v2"), _like(4, kind="play"))
    harness.send(_like(5, kind="play"))
    harness.run_until_done()
    assert harness.counted() == ["e001", "e002", "e003", "e004", "e005"]


def test_a_restart_remembers_the_like_and_the_next_day_takes_another(
    harness: IngestHarness,
) -> None:
    harness.send(_like(1))
    harness.run_until_done()
    harness.send(_like(2))  # every call is a restarted process
    harness.run_until_done()
    assert harness.counted() == ["e001"]
    harness.clock.advance(DAY_MS + 1)
    harness.send(_like(3, event_time_ms=NOW + DAY_MS))
    harness.run_until_done()
    assert harness.counted() == ["e001", "e003"]


def test_actions_at_an_inhuman_rate_are_capped_and_counted(harness: IngestHarness) -> None:
    before = _capped("inhuman_rate")
    harness.send(*(_like(n, item=f"v{n}") for n in range(50)))
    harness.send(*(_like(100 + n, item=f"v{n}", kind="play") for n in range(50)))
    harness.send(_like(200, "u2"))
    harness.run_until_done()
    counted = harness.counted()
    assert len([event_id for event_id in counted if event_id < "e100"]) == 20
    plays = [f"e{n}" for n in range(100, 150)]
    assert [event_id for event_id in counted if event_id >= "e100"] == [*plays, "e200"]
    assert _capped("inhuman_rate") == before + 30


def test_without_caps_every_event_counts(harness: IngestHarness) -> None:
    harness.limits = replace(LIMITS, idempotent=(), actions_a_minute=None)
    harness.send(*map(_like, range(50)))
    harness.run_until_done()
    assert len(harness.counted()) == 50
