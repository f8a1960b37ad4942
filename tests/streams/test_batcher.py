"""The door as a whole: behaviour in, sequenced events and dead letters out, on real brokers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from door_mill import NOW, PARTITIONS, Mill, event, make_mill

from deploy.services import process
from deploy.services.tansu import Tansu
from streams import erasure
from streams.bus.contract import BusError
from streams.bus.kafka.bus import KafkaBus
from streams.bus.memory import MemoryBus
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS
from streams.contract.schema import from_ipc
from streams.contract.topics import (
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    ENTITY_TOPIC,
    EVENTS_BY_USER,
    partition_of,
)
from streams.ingest import dead_letters
from streams.ingest import service as batcher
from streams.ingest.admission import REPLAY_HEADER

FORMS = [
    *(("memory", True), ("memory", False), ("kafka_broker", True), ("kafka_broker", False)),
    ("embedded", True),  # it has one door (`deploy.settings`)
]


@pytest.fixture(params=FORMS, ids=[f"{bus}-{'one' if alone else 'many'}" for bus, alone in FORMS])
def mill(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mill]:
    """Which bus, and whether the door is the only one."""
    bus, alone = request.param
    if bus == "memory":
        yield make_mill(MemoryBus(), True, alone)
    elif bus == "kafka_broker":
        yield make_mill(KafkaBus(request.getfixturevalue("wiped_kafka")), True, alone)
    else:
        broker = Tansu(tmp_path, name="own")
        child = process.start(broker, 30.0)
        yield make_mill(KafkaBus(broker.bootstrap_servers, session_timeout_ms=1_000), False, alone)
        child.kill()  # a graceful end takes it 5 s, and it keeps nothing


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


def test_each_bad_message_is_a_letter_and_the_good_ones_beside_it_arrive(mill: Mill) -> None:
    expected = []
    for place, (value, _) in enumerate(BAD.values()):
        mill.send(event(f"a{place}"), value, event(f"b{place}"), partition=0)
        expected += [f"a{place}", f"b{place}"]
    mill.run_until_quiet()
    assert mill.counted() == sorted(expected)
    assert mill.causes() == sorted(cause for _, cause in BAD.values())
    for record in mill.records(BEHAVIOUR_DEAD):
        assert dead_letters.read_letter(record).cause.topic == BEHAVIOUR


def test_rows_lie_in_their_entitys_partition_and_in_order(mill: Mill) -> None:
    ids = [f"e{i:04d}" for i in range(500)]
    values = [event(e, f"u{i % 17}", video_id=f"v{i % 13}") for i, e in enumerate(ids)]
    mill.send(*values, partition=1)
    mill.run_until_quiet()
    for topic, key in ((EVENTS_BY_USER, "user_id"), (ENTITY_TOPIC["video"], "video_id")):
        rows = mill.rows(topic)
        assert sorted(rows["event_id"]) == ids
        assert [partition_of(i, PARTITIONS) for i in rows[key]] == rows["at"].to_list()
    per_user = mill.rows().group_by("user_id", maintain_order=True).agg("event_id")["event_id"]
    assert all(ids.to_list() == sorted(ids) for ids in per_user)


def test_a_duplicate_counts_once_in_every_topic_also_after_a_restart(mill: Mill) -> None:
    mill.send(event("e1"), event("e2"), event("e1"))
    mill.send(event("e1", "u2"))
    mill.run_until_quiet()
    mill.send(event("e2"), event("e3"))
    mill.run_until_quiet()
    rows = mill.rows()
    assert len(rows) == 6
    assert rows.filter("duplicate")["event_id"].sort().to_list() == ["e1", "e2"]
    assert mill.rows(ENTITY_TOPIC["video"])["event_id"].sort().to_list() == ["e1", "e1", "e2", "e3"]


def test_the_horizon_ends_a_duplicates_memory(mill: Mill) -> None:
    mill.send(event("e1"))
    mill.run_until_quiet()
    mill.clock.advance(mill.limits.duplicate_horizon_ms + 1)
    mill.send(event("e1"))
    mill.run_until_quiet()
    assert mill.counted() == ["e1", "e1"]


def test_an_erased_user_does_not_come_back_but_may_return(mill: Mill) -> None:
    mill.bus.producer().send([erasure.message("gone", NOW - MINUTE_MS)])
    before, after = NOW - HOUR_MS, NOW
    mill.send(event("e1", "gone", event_time_ms=before), event("e2", event_time_ms=before))
    mill.send(event("e3", "gone", event_time_ms=after))
    mill.run_until_quiet()
    assert (mill.counted(), mill.causes()) == (["e2", "e3"], ["erased"])


def test_late_is_marked_and_history_is_not_late(mill: Mill) -> None:
    old = NOW - 2 * HOUR_MS
    history = {REPLAY_HEADER: b"1"}
    mill.send(event("late", event_time_ms=old), event("punctual"))
    mill.send(event("history", event_time_ms=old - 900 * DAY_MS), headers=history)
    mill.send(event("ahead", event_time_ms=NOW + HOUR_MS), headers=history)
    mill.run_until_quiet()
    rows = {row["event_id"]: row for row in mill.rows().to_dicts()}
    assert {e: row["late"] for e, row in rows.items()} == {
        "late": True,
        "punctual": False,
        "history": False,
    }
    assert rows["history"]["ingested_at_ms"] == old - 900 * DAY_MS
    assert rows["late"]["ingested_at_ms"] == NOW
    assert mill.causes() == ["future"]


def test_garbage_on_one_partition_does_not_stall_the_other(mill: Mill) -> None:
    mill.send(*[b"\x00\xffgarbage"] * 3_000, partition=0)
    good = [f"e{i:04d}" for i in range(300)]
    mill.send(*[event(e) for e in good], partition=1)
    mill.run_until_quiet()
    assert mill.counted() == good
    assert len(mill.causes()) == 3_000


def test_a_trace_passes_through_beside_its_row(mill: Mill) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    mill.send(event("e1"), event("e2", "u2"))
    mill.send(event("e3", "u3"), headers={"traceparent": trace.encode()})
    mill.run_until_quiet()
    for topic in (EVENTS_BY_USER, ENTITY_TOPIC["video"]):
        traced = []
        for record in mill.records(topic):
            ids = from_ipc(record.value or b"")["event_id"].to_pylist()
            marks = orjson.loads(record.header("traceparents") or b"[]")
            traced += [(ids[row], text) for row, text in marks]
        assert traced == [("e3", trace)]


def test_a_loop_killed_before_its_commit_writes_nothing_twice(mill: Mill) -> None:
    mill.send(*[event(f"e{i:02d}", f"u{i}", video_id=f"v{i}") for i in range(40)], b"bad")
    for loop in mill.loops():
        _die_before_commit(loop, mill.transactional)
    mill.run_until_quiet()
    assert mill.counted() == [f"e{i:02d}" for i in range(40)]
    assert len(mill.rows()) == 40
    assert len(mill.rows(ENTITY_TOPIC["video"])) == 40
    assert mill.causes() == ["not_json"]


class _Killed(Exception):
    pass


def _die_before_commit(loop: Any, transactional: bool) -> None:
    """Ends a loop as a kill would: what it wrote stays, its offsets do not move.

    A loop that has joined and finds nothing twice has nothing to write.
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
            idle = 0 if loop.turn(0.2) or not loop._input.consumer.generation() else idle + 1
    loop.close()


def test_mended_letters_are_sent_again(mill: Mill) -> None:
    mill.send(event("x", kind="plya"), event("e1"), key=b"k", headers={"h": b"1"})
    mill.run_until_quiet()

    def mend(dead: dead_letters.DeadLetter) -> bytes | None:
        value = dead.record.value or b""
        return value.replace(b"plya", b"play") if b"plya" in value else None

    done = dead_letters.replay(mill.bus, mend)
    mill.run_until_quiet()
    assert done.sent >= 1
    assert mill.counted() == ["e1", "x"]


@pytest.mark.parametrize("doors", [1, 2])
def test_run_ends_when_told_and_raises_what_broke_it(doors: int) -> None:
    bus = MemoryBus()
    mill = make_mill(bus, True, doors == 1)
    stop = threading.Event()
    door = partial(batcher.run, clock=mill.clock, limits=mill.limits, stop=stop, doors=doors)
    thread = _in_thread(lambda: door(bus))
    mill.send(event("e1"))
    deadline = time.monotonic() + 20
    while not mill.counted() and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    assert thread() is None
    assert mill.counted() == ["e1"]
    assert "ensure_topics" in str(_in_thread(lambda: door(MemoryBus()))())


@pytest.mark.parametrize("mill", [form for form in FORMS if not form[1]], indirect=True)
def test_the_only_door_first_sequences_what_many_have_admitted(mill: Mill) -> None:
    """One door is closed with events admitted; the setting changes; copies come in between."""
    mill.send(event("e1"), event("e2", "u2"))
    first = mill.batcher()
    while not first.turn(0.2):
        pass
    first.close()
    assert not mill.counted()
    mill.send(event("e1"), event("e3"))
    stop = threading.Event()
    run = partial(batcher.run, mill.bus, clock=mill.clock, limits=mill.limits, group=mill.group)
    thread = _in_thread(lambda: run(stop=stop, transactional=mill.transactional))
    deadline = time.monotonic() + 40
    while len(mill.rows()) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
    assert thread() is None
    assert mill.counted() == ["e1", "e2", "e3"]
    assert mill.rows().filter("duplicate")["event_id"].to_list() == ["e1"]


def test_the_only_door_ends_when_it_must_share_the_input() -> None:
    mill = make_mill(MemoryBus(), True, alone=True)
    first = mill.batcher()
    mill.send(event("e1"), partition=0)
    assert first.turn(0.01) == 1
    second = mill.batcher()
    mill.send(event("e2"), partition=0)
    mill.send(event("e3"), partition=1)
    with pytest.raises(BusError, match="DOORS"):
        first.turn(0.01)
    first.close()
    assert second.turn(0.01) == 2
    second.close()
    assert mill.counted() == ["e1", "e2", "e3"]


def test_the_only_door_ends_for_company_though_nothing_comes() -> None:
    """As one that was stopped, replaced and goes on: its successor has admitted all there is."""
    mill = make_mill(MemoryBus(), True, alone=True)
    first = mill.batcher()
    assert first.turn(0.01) == 0
    second = mill.batcher()
    with pytest.raises(BusError, match="DOORS"):
        first.turn(0.01)
    first.close()
    assert second.turn(0.01) == 0
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
