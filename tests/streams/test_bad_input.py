"""What producers get wrong, at rate: nothing is lost, and no good event waits for a bad one."""

from __future__ import annotations

import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from streams.bus import consume as loop
from streams.bus.contract import Bus, Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.bus.memory import MemoryBus
from streams.codec import protobuf
from streams.codec.content_type import CONTENT_TYPE, PROTOBUF
from streams.codec.decode import judge
from streams.contract.clock import ManualClock
from streams.contract.protobuf_schema import EventMessage, message_of
from streams.contract.schema import from_ipc
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER, topic_specs
from streams.ingest import dead_letters
from streams.ingest.admission import AdmissionLimits
from streams.ingest.service import Batcher

NOW = 1_750_000_000_000
BINARY = {CONTENT_TYPE: PROTOBUF}
Body = dict[str, Any]


def body(event_id: str, **fields: Any) -> Body:
    play = {"kind": "play", "video_id": "v1", "event_time_ms": NOW}
    return {"event_id": event_id, "user_id": "u1", **play, **fields}


def event(event_id: str, **fields: Any) -> bytes:
    return orjson.dumps(body(event_id, **fields))


@dataclass
class Door:
    """The real batcher on a bus, one turn at a time."""

    bus: Bus
    loop: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.bus.ensure_topics(topic_specs(2))
        self.producer = self.bus.producer()
        self.loop = Batcher(self.bus, ManualClock(NOW), AdmissionLimits())

    def send(self, *values: bytes | None, **place: Any) -> None:
        self.producer.send([Outgoing(BEHAVIOUR, value, **place) for value in values])

    def work_off(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while count > 0:
            count -= self.loop.turn(0.2)
            assert time.monotonic() < deadline, f"{count} records never came"

    def admitted(self) -> list[str]:
        """Ids in the order in which they lie."""
        found: list[str] = []
        for partition, (start, stop) in self.bus.ends(EVENTS_BY_USER).items():
            for record in self.bus.scan(EVENTS_BY_USER, partition, start, stop):
                found += from_ipc(record.value or b"")["event_id"].to_pylist()
        return found

    def causes(self) -> Counter[str]:
        return Counter(letter.cause.cause for letter in dead_letters.letters(self.bus))


@pytest.fixture
def door() -> Door:
    return Door(MemoryBus())


UNITS = {
    "seconds": (NOW // 1_000, "seconds: multiply by 1000"),
    "seconds with a fraction": (NOW / 1_000 + 0.25, "seconds: multiply by 1000"),
    "microseconds": (NOW * 1_000, "microseconds: divide by 1000"),
    "nanoseconds": (NOW * 1_000_000, "nanoseconds: divide by 1000000"),
    "a number in a string": (str(NOW), "not a string"),
    "a date in a string": ("2025-06-15T15:06:40Z", "not a string"),
    "milliseconds with a fraction": (NOW + 0.5, "whole milliseconds"),
    "400 digits": (int("9" * 400), "whole milliseconds"),
    "zero": (0, "whole milliseconds"),
    "true": (True, "whole milliseconds"),
    "a list": ([NOW], "whole milliseconds"),
}


@pytest.mark.parametrize(("stated", "fix"), UNITS.values(), ids=list(UNITS))
def test_a_time_in_another_unit_is_refused_with_its_fix(stated: object, fix: str) -> None:
    verdict = judge(json.dumps(body("e", event_time_ms=stated)).encode())
    assert isinstance(verdict, tuple)
    assert verdict[1].startswith("event_time_ms: ")
    assert fix in verdict[1]


@pytest.mark.parametrize("unit", ["seconds", "microseconds", "nanoseconds"])
def test_protobuf_names_the_unit_as_well(unit: str) -> None:
    stated, fix = UNITS[unit]
    verdict = protobuf.judge(message_of(body("e", event_time_ms=stated)))
    assert isinstance(verdict, tuple)
    assert fix in verdict[1]


def _unfit(**fields: Any) -> Callable[[int], bytes]:
    return lambda i: event(f"bad{i}", **fields)


BAD: dict[str, tuple[Callable[[int], bytes | None], str]] = {
    "bytes": (lambda i: b"\x00\xffgarbage%d" % i, "undecodable"),
    "null value": (lambda _: None, "null_value"),
    "cut": (lambda i: event(f"bad{i}")[:-9], "not_json"),
    "cut and closed": (lambda i: event(f"bad{i}").replace(b'"v1"', b'"v1'), "not_json"),
    "two in one": (lambda i: event(f"bad{i}") + event(f"bad{i}"), "not_json"),
    "a list": (lambda i: b"[" + event(f"bad{i}") + b"]", "not_an_object"),
    "seconds": (_unfit(event_time_ms=NOW // 1_000), "out_of_bounds"),
    "microseconds": (_unfit(event_time_ms=NOW * 1_000), "out_of_bounds"),
    "string time": (_unfit(event_time_ms="2025-06-15"), "wrong_type"),
    "unknown kind": (_unfit(kind="wink"), "unknown_kind"),
    "a huge id": (_unfit(video_id="i" * 64_000), "out_of_bounds"),
    "far future": (_unfit(event_time_ms=NOW + 10**10), "future"),
}


def test_every_third_message_bad_in_all_ways_loses_neither_good_nor_bad(door: Door) -> None:
    bad, causes = [make for make, _ in BAD.values()], [cause for _, cause in BAD.values()]
    values = [bad[i // 3 % len(bad)](i) if i % 3 == 0 else event(f"e{i}") for i in range(3_600)]
    door.send(*values, partition=0)
    door.work_off(len(values))
    assert door.admitted() == [f"e{i}" for i in range(3_600) if i % 3]
    assert door.causes() == Counter(causes * 100)


@pytest.mark.parametrize("sort", sorted(BAD.keys() - {"a huge id"}))
def test_a_topic_of_nothing_but_garbage_is_worked_off_at_a_steady_cost(sort: str) -> None:
    """CPU of 4,000 bad events against 500 of them: a cost that grew with their number, as that
    of rows which are looked for among their neighbours does, would be many times as much."""
    make, cause = BAD[sort]
    few_s, _ = _cost([make(i) for i in range(500)])
    many_s, causes = _cost([make(i) for i in range(4_000)])
    assert causes == {cause: 4_000}
    assert many_s < 3 * 8 * few_s


def _cost(values: list[bytes | None]) -> tuple[float, Counter[str]]:
    """Without the collector, which the door spares as well and the tests' heap makes dear."""
    door = Door(MemoryBus())
    door.send(*values, partition=0)
    gc.disable()
    began = time.thread_time()
    door.work_off(len(values))
    took = time.thread_time() - began
    gc.enable()
    return took, door.causes()


def test_garbage_in_protobuf_hurts_no_neighbour_either(door: Door) -> None:
    bad: list[bytes | None] = [b"\xff" * 20, None, b"\x0a\xffx", event("json")]
    bad += [message_of(body("x", event_time_ms=NOW // 1_000)), message_of(body("i" * 64_000))]
    for place in range(600):
        door.send(bad[place % len(bad)], message_of(body(f"e{place}")), headers=BINARY, partition=0)
    door.work_off(1_200)
    assert door.admitted() == [f"e{place}" for place in range(600)]
    causes = {"not_protobuf": 300, "null_value": 100, "out_of_bounds": 200}
    assert door.causes() == causes


def test_keys_mean_nothing_to_the_door(door: Door) -> None:
    keys = [None, b"", b"\xff\x00", b"k" * 64_000]
    for place, key in enumerate(keys):
        door.send(event(f"e{place}"), b"{", key=key, partition=0)
    door.work_off(8)
    assert door.admitted() == ["e0", "e1", "e2", "e3"]
    kept = [letter.record.key for letter in dead_letters.letters(door.bus)]
    assert kept == [*keys[:3], b"k" * 8_192]


def test_a_schema_that_changes_under_way_loses_nothing_and_keeps_the_order(door: Door) -> None:
    for place in range(0, 2_000, 5):
        ids = [f"e{place + step}" for step in range(5)]
        door.send(event(ids[0]), event(ids[1], mood={"deep": [1]}, rank=7), partition=0)
        newer = message_of(body(ids[3])) + b"\x7a\x01x\x80\x01\x05"  # fields 15 and 16
        door.send(message_of(body(ids[2])), newer, headers=BINARY, partition=0)
        door.send(event(ids[4], surface=None), event("x", kind="wink"), partition=0)
    door.work_off(2_400)
    assert door.admitted() == [f"e{i}" for i in range(2_000)]
    assert door.causes() == {"unknown_kind": 400}


def test_a_protobuf_letter_is_mended_and_sent_again_as_protobuf(door: Door) -> None:
    door.send(message_of(body("x", event_time_ms=NOW // 1_000)), headers=BINARY, partition=0)
    door.work_off(1)

    def mend(letter: dead_letters.DeadLetter) -> bytes:
        message = EventMessage.FromString(letter.record.value)
        message.event_time_ms *= 1_000
        mended: bytes = message.SerializeToString()
        return mended

    assert dead_letters.replay(door.bus, mend).sent == 1
    door.work_off(1)
    assert door.admitted() == ["x"]


@pytest.fixture
def kafka_door(wiped_kafka: str) -> Iterator[Door]:
    door = Door(KafkaBus(wiped_kafka))
    yield door
    door.loop.close()


def test_good_events_pass_a_partition_that_is_flooded_with_garbage(
    kafka_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flood lies there first; the last good event is admitted long before its end."""
    # The flood is many polls: where time is short, one would else hold all of it.
    monkeypatch.setattr(loop, "MAX_POLL", 5_000)
    flood, good = 50_000, [f"e{i}" for i in range(2_000)]
    kafka_door.send(*[b'{"garbage": %d' % i + b"x" * 150 for i in range(flood)], partition=0)
    kafka_door.send(*[event(e) for e in good], partition=1)
    worked = 0
    while len(kafka_door.admitted()) < len(good):
        worked += kafka_door.loop.turn(0.2)
    assert worked < flood * 5 // 6
    kafka_door.work_off(flood + len(good) - worked)
    assert kafka_door.admitted() == good
    dead = [letter.cause for letter in dead_letters.letters(kafka_door.bus)]
    assert [cause.offset for cause in dead] == list(range(flood))
    assert {cause.cause for cause in dead} == {"not_json"}


@pytest.mark.parametrize(("codec", "size"), [("none", 1_048_488), ("gzip", 20_000_000)])
def test_a_message_as_large_as_the_broker_takes_is_a_letter(
    kafka_door: Door, codec: str, size: int
) -> None:
    """A batch may have 1,048,588 bytes on the wire: what compresses well is far larger inside."""
    _send_as(codec, size, event("x", query="q" * (size - 150)), kafka_door.bus)
    kafka_door.send(event("beside"), partition=0)
    kafka_door.work_off(2)
    assert kafka_door.admitted() == ["beside"]
    (letter,) = dead_letters.letters(kafka_door.bus)
    assert letter.cause.cause == "too_large"
    assert size - 200 < letter.cause.value_bytes < size
    assert not letter.cause.whole


def _send_as(codec: str, size: int, value: bytes, bus: Bus) -> None:
    """Our own producer has lower limits: this is any other."""
    assert isinstance(bus, KafkaBus)
    options = {"message.max.bytes": size + 1_000, "compression.codec": codec}
    producer = Producer({"bootstrap.servers": bus.bootstrap_servers, **options})
    failed: list[object] = []
    producer.produce(BEHAVIOUR, value, partition=0, on_delivery=lambda e, _: failed.append(e))
    producer.flush(20)
    assert failed == [None]
