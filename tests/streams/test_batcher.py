"""The ingest service as a whole: behaviour in, events and dead letters out, on every bus."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from ingest_harness import NOW, PARTITIONS, IngestHarness, event, make_harness

from deploy.services import process
from deploy.services.tansu import Tansu
from streams import erasure
from streams.bus.contract import BusError
from streams.bus.kafka.bus import KafkaBus
from streams.bus.memory import MemoryBus
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS, ManualClock
from streams.contract.schema import from_ipc
from streams.contract.topics import (
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    ENTITY_TOPIC,
    EVENTS_BY_USER,
    partition_of,
)
from streams.ingest import dead_letters, replay, service
from streams.ingest.admission import REPLAY_HEADER
from streams.ingest.loop import IngestConfig

FORMS = [
    *(("memory", True), ("memory", False), ("kafka_broker", True), ("kafka_broker", False)),
    ("embedded", True),  # a sole batcher only (`deploy.settings`)
]


@pytest.fixture(
    params=FORMS,
    ids=[f"{bus}-{'one' if sole_consumer else 'many'}" for bus, sole_consumer in FORMS],
)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[IngestHarness]:
    """On each bus, with a sole batcher or one of several."""
    bus, sole_consumer = request.param
    if bus == "memory":
        yield make_harness(MemoryBus(), True, sole_consumer)
    elif bus == "kafka_broker":
        yield make_harness(KafkaBus(request.getfixturevalue("wiped_kafka")), True, sole_consumer)
    else:
        broker = Tansu(tmp_path, name="own")
        child = process.start(broker, 30.0)
        yield make_harness(
            KafkaBus(broker.bootstrap_servers, session_timeout_ms=1_000), False, sole_consumer
        )
        child.kill()  # a graceful stop takes 5 s, and nothing is kept


BAD: dict[str, tuple[bytes | None, str]] = {
    "undecodable bytes": (b'{"event_id": "\xff\xfe"}', "undecodable"),
    "null value": (None, "null_value"),
    "no JSON": (b'{"event_id": ', "not_json"),
    "two objects": (event("x") + event("y"), "not_json"),
    "no object": (b"[1, 2]", "not_an_object"),
    "string time": (event("x", event_time_ms=str(NOW)), "wrong_type"),
    "float time": (event("x", event_time_ms=NOW + 0.5), "wrong_type"),
    "seconds": (event("x", event_time_ms=NOW // 1000), "out_of_bounds"),
    "microseconds": (event("x", event_time_ms=NOW * 1000), "out_of_bounds"),
    "number as an id": (event("x", video_id=7), "wrong_type"),
    "unknown kind": (event("x", kind="wink"), "unknown_kind"),
    "missing kind": (b'{"event_id": "x"}', "missing_field"),
    "missing field": (event("x", kind="query_click"), "missing_field"),
    "future": (event("x", event_time_ms=NOW + HOUR_MS), "future"),
    "ancient": (event("x", event_time_ms=NOW - 401 * DAY_MS), "ancient"),
    "a megabyte": (event("x", query="q" * 990_000), "too_large"),
    "a huge id": (event("i" * 64_000), "out_of_bounds"),
    "lone surrogate": (event("x").replace(b'"v1"', b'"\\ud800"'), "not_json"),
    "NUL": (event("x").replace(b'"v1"', b'"v\\u0000"'), "out_of_bounds"),
}


def test_bad_messages_become_dead_letters_and_do_not_affect_others(harness: IngestHarness) -> None:
    expected = []
    for number, (value, _) in enumerate(BAD.values()):
        harness.send(event(f"a{number}"), value, event(f"b{number}"), partition=0)
        expected += [f"a{number}", f"b{number}"]
    harness.run_until_done()
    assert harness.counted() == sorted(expected)
    assert harness.causes() == sorted(cause for _, cause in BAD.values())
    for record in harness.records(BEHAVIOUR_DEAD):
        assert dead_letters.parse_dead_letter(record).cause.topic == BEHAVIOUR


def test_rows_are_in_their_entitys_partition_and_in_order(harness: IngestHarness) -> None:
    ids = [f"e{i:04d}" for i in range(500)]
    values = [event(e, f"u{i % 17}", video_id=f"v{i % 13}") for i, e in enumerate(ids)]
    harness.send(*values, partition=1)
    harness.run_until_done()
    for topic, key in ((EVENTS_BY_USER, "user_id"), (ENTITY_TOPIC["video"], "video_id")):
        rows = harness.rows(topic)
        assert sorted(rows["event_id"]) == ids
        assert [partition_of(i, PARTITIONS) for i in rows[key]] == rows["at"].to_list()
    per_user = harness.rows().group_by("user_id", maintain_order=True).agg("event_id")["event_id"]
    assert all(ids.to_list() == sorted(ids) for ids in per_user)


def test_a_duplicate_counts_once_in_every_topic_and_after_a_restart(harness: IngestHarness) -> None:
    harness.send(event("e1"), event("e2"), event("e1"))
    harness.send(event("e1", "u2"))
    harness.run_until_done()
    harness.send(event("e2"), event("e3"))
    harness.run_until_done()
    rows = harness.rows()
    assert len(rows) == 6
    assert rows.filter("duplicate")["event_id"].sort().to_list() == ["e1", "e2"]
    assert harness.rows(ENTITY_TOPIC["video"])["event_id"].sort().to_list() == [
        "e1",
        "e1",
        "e2",
        "e3",
    ]


def test_past_the_horizon_a_duplicate_counts(harness: IngestHarness) -> None:
    harness.send(event("e1"))
    harness.run_until_done()
    harness.clock.advance(harness.limits.duplicate_horizon_ms + 1)
    harness.send(event("e1"))
    harness.run_until_done()
    assert harness.counted() == ["e1", "e1"]


def test_events_before_an_erasure_are_refused_and_later_ones_admitted(
    harness: IngestHarness,
) -> None:
    harness.bus.producer().send([erasure.erasure_message("gone", NOW - MINUTE_MS)])
    before, after = NOW - HOUR_MS, NOW
    harness.send(event("e1", "gone", event_time_ms=before), event("e2", event_time_ms=before))
    harness.send(event("e3", "gone", event_time_ms=after))
    harness.run_until_done()
    assert (harness.counted(), harness.causes()) == (["e2", "e3"], ["erased"])


def test_erasures_are_read_while_no_event_arrives() -> None:
    """Their consumer would otherwise lose its membership after minutes without events."""
    bus = make_harness(MemoryBus(), True, True).bus
    batcher = service.Batcher(bus, ManualClock(NOW), IngestConfig())
    bus.producer().send([erasure.erasure_message("gone", NOW)])
    assert batcher.run_once(0.0) == 0
    assert batcher._erasures.until_ms == {"gone": NOW}
    batcher.close()


def test_late_events_are_marked_and_replayed_ones_are_not(harness: IngestHarness) -> None:
    old = NOW - 2 * HOUR_MS
    history = {REPLAY_HEADER: b"1"}
    harness.send(event("late", event_time_ms=old), event("punctual"))
    harness.send(event("history", event_time_ms=old - 900 * DAY_MS), headers=history)
    harness.send(event("ahead", event_time_ms=NOW + HOUR_MS), headers=history)
    harness.run_until_done()
    rows = {row["event_id"]: row for row in harness.rows().to_dicts()}
    assert {e: row["late"] for e, row in rows.items()} == {
        "late": True,
        "punctual": False,
        "history": False,
    }
    assert rows["history"]["ingested_at_ms"] == old - 900 * DAY_MS
    assert rows["late"]["ingested_at_ms"] == NOW
    assert harness.causes() == ["future"]


def test_garbage_on_one_partition_does_not_stall_the_other(harness: IngestHarness) -> None:
    harness.send(*[b"\x00\xffgarbage"] * 3_000, partition=0)
    good = [f"e{i:04d}" for i in range(300)]
    harness.send(*[event(e) for e in good], partition=1)
    harness.run_until_done()
    assert harness.counted() == good
    assert len(harness.causes()) == 3_000


def test_a_trace_follows_its_row(harness: IngestHarness) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    harness.send(event("e1"), event("e2", "u2"))
    harness.send(event("e3", "u3"), headers={"traceparent": trace.encode()})
    harness.run_until_done()
    for topic in (EVENTS_BY_USER, ENTITY_TOPIC["video"]):
        traced = []
        for record in harness.records(topic):
            ids = from_ipc(record.value or b"")["event_id"].to_pylist()
            marks = orjson.loads(record.header("traceparents") or b"[]")
            traced += [(ids[row], text) for row, text in marks]
        assert traced == [("e3", trace)]


def test_a_loop_killed_before_its_commit_writes_no_row_twice(harness: IngestHarness) -> None:
    harness.send(*[event(f"e{i:02d}", f"u{i}", video_id=f"v{i}") for i in range(40)], b"bad")
    for loop in harness.loops():
        _die_before_commit(loop, harness.transactional)
    harness.run_until_done()
    assert harness.counted() == [f"e{i:02d}" for i in range(40)]
    assert len(harness.rows()) == 40
    assert len(harness.rows(ENTITY_TOPIC["video"])) == 40
    assert harness.causes() == ["not_json"]


class _Killed(Exception):
    pass


def _die_before_commit(loop: Any, transactional: bool) -> None:
    """Ends a loop as a kill would: its writes stay, its offsets are not committed.

    A loop that has joined its group and polls nothing twice has nothing to write.
    """

    def killed(*_: Any, **__: Any) -> None:
        raise _Killed

    if transactional:
        loop._producer.send = killed  # a transaction that never committed leaves nothing
    else:
        loop._input.consumer.commit = killed
    with contextlib.suppress(_Killed):
        idle = 0
        while idle < 2:
            count = loop.run_once(0.2)
            joined = loop._input.consumer.assignment_version() > 0
            idle = idle + 1 if joined and not count else 0
    loop.close()


def test_repaired_dead_letters_are_resent(harness: IngestHarness) -> None:
    harness.send(event("x", kind="plya"), event("e1"), key=b"k", headers={"h": b"1"})
    harness.run_until_done()

    def repair(dead: dead_letters.DeadLetter) -> bytes | None:
        value = dead.record.value or b""
        return value.replace(b"plya", b"play") if b"plya" in value else None

    done = replay.replay(harness.bus, repair)
    harness.run_until_done()
    assert done.sent >= 1
    assert harness.counted() == ["e1", "x"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_run_returns_on_stop_and_raises_the_first_failure(replicas: int) -> None:
    bus = MemoryBus()
    harness = make_harness(bus, True, replicas == 1)
    stop = threading.Event()
    config = IngestConfig(limits=harness.limits, replicas=replicas)
    run = partial(service.run, config=config, clock=harness.clock, stop=stop)
    thread = _in_thread(lambda: run(bus))
    harness.send(event("e1"))
    deadline = time.monotonic() + 20
    while not harness.counted() and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    assert thread() is None
    assert harness.counted() == ["e1"]
    assert "ensure_topics" in str(_in_thread(lambda: run(MemoryBus()))())


@pytest.mark.parametrize("harness", [form for form in FORMS if not form[1]], indirect=True)
def test_a_sole_batcher_first_sequences_what_replicas_admitted(harness: IngestHarness) -> None:
    """A batcher stops with admitted events; `replicas` becomes 1; duplicates arrive meanwhile."""
    harness.send(event("e1"), event("e2", "u2"))
    first = harness.batcher()
    while not first.run_once(0.2):
        pass
    first.close()
    assert not harness.counted()
    harness.send(event("e1"), event("e3"))
    stop = threading.Event()
    config = replace(harness.config, replicas=1)
    thread = _in_thread(lambda: service.run(harness.bus, config, clock=harness.clock, stop=stop))
    deadline = time.monotonic() + 40
    while len(harness.rows()) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
    assert thread() is None
    assert harness.counted() == ["e1", "e2", "e3"]
    assert harness.rows().filter("duplicate")["event_id"].to_list() == ["e1"]


def test_a_sole_batcher_ends_when_another_process_reads_its_input() -> None:
    harness = make_harness(MemoryBus(), True, sole_consumer=True)
    first = harness.batcher()
    harness.send(event("e1"), partition=0)
    assert first.run_once(0.01) == 1
    second = harness.batcher()
    harness.send(event("e2"), partition=0)
    harness.send(event("e3"), partition=1)
    with pytest.raises(BusError, match="REPLICAS"):
        first.run_once(0.01)
    first.close()
    assert second.run_once(0.01) == 2
    second.close()
    assert harness.counted() == ["e1", "e2", "e3"]


def test_a_sole_batcher_ends_when_another_joins_though_no_record_arrives() -> None:
    """As after a freeze, when its successor has admitted everything."""
    harness = make_harness(MemoryBus(), True, sole_consumer=True)
    first = harness.batcher()
    assert first.run_once(0.01) == 0
    second = harness.batcher()
    with pytest.raises(BusError, match="REPLICAS"):
        first.run_once(0.01)
    first.close()
    assert second.run_once(0.01) == 0
    second.close()


def _in_thread(work: Callable[[], None]) -> Callable[[], BaseException | None]:
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()

    def result() -> BaseException | None:
        thread.join(20)
        assert not thread.is_alive()
        return failures[0] if failures else None

    return result
