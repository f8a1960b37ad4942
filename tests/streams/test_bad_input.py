"""Invalid input at rate: nothing is lost, and no valid event waits for an invalid one."""

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
from streams.codec.decode import validate_json_event
from streams.contract.clock import ManualClock
from streams.contract.protobuf_schema import EventMessage, encode_protobuf_event
from streams.contract.schema import from_ipc
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER, topic_specs
from streams.ingest import dead_letters, replay
from streams.ingest.loop import IngestConfig
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
class BatcherHarness:
    """The real batcher on a bus, one poll at a time."""

    bus: Bus
    loop: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.bus.ensure_topics(topic_specs(2))
        self.producer = self.bus.producer()
        self.loop = Batcher(self.bus, ManualClock(NOW), IngestConfig())

    def send(self, *values: bytes | None, **place: Any) -> None:
        self.producer.send([Outgoing(BEHAVIOUR, value, **place) for value in values])

    def work_off(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while count > 0:
            count -= self.loop.run_once(0.2)
            assert time.monotonic() < deadline, f"{count} records never came"

    def admitted(self) -> list[str]:
        """Event ids in stored order."""
        found: list[str] = []
        for partition, (start, stop) in self.bus.ends(EVENTS_BY_USER).items():
            for record in self.bus.scan(EVENTS_BY_USER, partition, start, stop):
                found += from_ipc(record.value or b"")["event_id"].to_pylist()
        return found

    def causes(self) -> Counter[str]:
        return Counter(dead.cause.cause for dead in dead_letters.scan_dead_letters(self.bus))


@pytest.fixture
def harness() -> BatcherHarness:
    return BatcherHarness(MemoryBus())


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
def test_a_time_in_another_unit_is_rejected_with_its_fix(stated: object, fix: str) -> None:
    verdict = validate_json_event(json.dumps(body("e", event_time_ms=stated)).encode())
    assert isinstance(verdict, tuple)
    assert verdict[1].startswith("event_time_ms: ")
    assert fix in verdict[1]


@pytest.mark.parametrize("unit", ["seconds", "microseconds", "nanoseconds"])
def test_protobuf_states_the_unit_as_well(unit: str) -> None:
    stated, fix = UNITS[unit]
    verdict = protobuf.validate_protobuf_event(
        encode_protobuf_event(body("e", event_time_ms=stated))
    )
    assert isinstance(verdict, tuple)
    assert fix in verdict[1]


def _invalid(**fields: Any) -> Callable[[int], bytes]:
    return lambda i: event(f"bad{i}", **fields)


BAD: dict[str, tuple[Callable[[int], bytes | None], str]] = {
    "bytes": (lambda i: b"\xff\x00garbage%d" % i, "undecodable"),
    "a torn frame": (lambda i: b"\x00\xffgarbage%d" % i, "torn_frame"),
    "null value": (lambda _: None, "null_value"),
    "truncated": (lambda i: event(f"bad{i}")[:-9], "not_json"),
    "truncated string": (lambda i: event(f"bad{i}").replace(b'"v1"', b'"v1'), "not_json"),
    "two in one": (lambda i: event(f"bad{i}") + event(f"bad{i}"), "not_json"),
    "a list": (lambda i: b"[" + event(f"bad{i}") + b"]", "not_an_object"),
    "seconds": (_invalid(event_time_ms=NOW // 1_000), "out_of_bounds"),
    "microseconds": (_invalid(event_time_ms=NOW * 1_000), "out_of_bounds"),
    "string time": (_invalid(event_time_ms="2025-06-15"), "wrong_type"),
    "unknown kind": (_invalid(kind="wink"), "unknown_kind"),
    "a huge id": (_invalid(video_id="i" * 64_000), "out_of_bounds"),
    "far future": (_invalid(event_time_ms=NOW + 10**10), "future"),
}


def test_all_kinds_of_invalid_messages_lose_no_message(harness: BatcherHarness) -> None:
    bad, causes = [make for make, _ in BAD.values()], [cause for _, cause in BAD.values()]
    count = 300 * len(bad)
    values = [bad[i // 3 % len(bad)](i) if i % 3 == 0 else event(f"e{i}") for i in range(count)]
    harness.send(*values, partition=0)
    harness.work_off(len(values))
    assert harness.admitted() == [f"e{i}" for i in range(count) if i % 3]
    assert harness.causes() == Counter(causes * 100)


@pytest.mark.parametrize("name", sorted(BAD.keys() - {"a huge id"}))
def test_invalid_messages_have_a_constant_cost(name: str) -> None:
    """CPU of 4,000 invalid events against 500: a cost that grows with their number, such as a
    search among neighbours, would exceed the bound many times."""
    make, cause = BAD[name]
    few_s, _ = _cost([make(i) for i in range(500)])
    many_s, causes = _cost([make(i) for i in range(4_000)])
    assert causes == {cause: 4_000}
    assert many_s < 3 * 8 * few_s


def _cost(values: list[bytes | None]) -> tuple[float, Counter[str]]:
    """CPU seconds and causes, without garbage collection, as in production."""
    harness = BatcherHarness(MemoryBus())
    harness.send(*values, partition=0)
    gc.disable()
    began = time.thread_time()
    harness.work_off(len(values))
    took = time.thread_time() - began
    gc.enable()
    return took, harness.causes()


def test_invalid_protobuf_affects_no_neighbour(harness: BatcherHarness) -> None:
    bad: list[bytes | None] = [b"\xff" * 20, None, b"\x0a\xffx", event("json")]
    bad += [
        encode_protobuf_event(body("x", event_time_ms=NOW // 1_000)),
        encode_protobuf_event(body("i" * 64_000)),
    ]
    for place in range(600):
        harness.send(
            bad[place % len(bad)],
            encode_protobuf_event(body(f"e{place}")),
            headers=BINARY,
            partition=0,
        )
    harness.work_off(1_200)
    assert harness.admitted() == [f"e{place}" for place in range(600)]
    causes = {"not_protobuf": 300, "null_value": 100, "out_of_bounds": 200}
    assert harness.causes() == causes


def test_keys_are_ignored(harness: BatcherHarness) -> None:
    keys = [None, b"", b"\xff\x00", b"k" * 64_000]
    for place, key in enumerate(keys):
        harness.send(event(f"e{place}"), b"{", key=key, partition=0)
    harness.work_off(8)
    assert harness.admitted() == ["e0", "e1", "e2", "e3"]
    kept = [dead.record.key for dead in dead_letters.scan_dead_letters(harness.bus)]
    assert kept == [*keys[:3], b"k" * 8_192]


def test_a_schema_change_midway_loses_nothing_and_keeps_the_order(harness: BatcherHarness) -> None:
    for place in range(0, 2_000, 5):
        ids = [f"e{place + step}" for step in range(5)]
        harness.send(event(ids[0]), event(ids[1], mood={"deep": [1]}, rank=7), partition=0)
        newer = encode_protobuf_event(body(ids[3])) + b"\x7a\x01x\x80\x01\x05"  # fields 15 and 16
        harness.send(encode_protobuf_event(body(ids[2])), newer, headers=BINARY, partition=0)
        harness.send(event(ids[4], surface=None), event("x", kind="wink"), partition=0)
    harness.work_off(2_400)
    assert harness.admitted() == [f"e{i}" for i in range(2_000)]
    assert harness.causes() == {"unknown_kind": 400}


def test_a_protobuf_dead_letter_is_repaired_and_sent_again_as_protobuf(
    harness: BatcherHarness,
) -> None:
    harness.send(
        encode_protobuf_event(body("x", event_time_ms=NOW // 1_000)), headers=BINARY, partition=0
    )
    harness.work_off(1)

    def repair(dead: dead_letters.DeadLetter) -> bytes:
        message = EventMessage.FromString(dead.record.value)
        message.event_time_ms *= 1_000
        repaired: bytes = message.SerializeToString()
        return repaired

    assert replay.replay(harness.bus, repair).sent == 1
    harness.work_off(1)
    assert harness.admitted() == ["x"]


@pytest.fixture
def kafka_harness(wiped_kafka: str) -> Iterator[BatcherHarness]:
    harness = BatcherHarness(KafkaBus(wiped_kafka))
    yield harness
    harness.loop.close()


def test_valid_events_are_not_blocked_by_a_partition_of_garbage(
    kafka_harness: BatcherHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flood comes first; the last valid event is admitted long before its end."""
    # Splits the flood into many polls, which a slow machine would otherwise read as one.
    monkeypatch.setattr(loop, "MAX_POLL", 5_000)
    flood, good = 50_000, [f"e{i}" for i in range(2_000)]
    kafka_harness.send(*[b'{"garbage": %d' % i + b"x" * 150 for i in range(flood)], partition=0)
    kafka_harness.send(*[event(e) for e in good], partition=1)
    worked = 0
    while len(kafka_harness.admitted()) < len(good):
        worked += kafka_harness.loop.run_once(0.2)
    assert worked < flood * 5 // 6
    kafka_harness.work_off(flood + len(good) - worked)
    assert kafka_harness.admitted() == good
    dead = [each.cause for each in dead_letters.scan_dead_letters(kafka_harness.bus)]
    assert [cause.offset for cause in dead] == list(range(flood))
    assert {cause.cause for cause in dead} == {"not_json"}


@pytest.mark.parametrize(("codec", "size"), [("none", 1_048_488), ("gzip", 20_000_000)])
def test_a_message_as_large_as_the_broker_accepts_is_a_dead_letter(
    kafka_harness: BatcherHarness, codec: str, size: int
) -> None:
    """A batch may have 1,048,588 bytes on the wire, but far more uncompressed."""
    _send_as(codec, size, event("x", query="q" * (size - 150)), kafka_harness.bus)
    kafka_harness.send(event("beside"), partition=0)
    kafka_harness.work_off(2)
    assert kafka_harness.admitted() == ["beside"]
    (dead,) = dead_letters.scan_dead_letters(kafka_harness.bus)
    assert dead.cause.cause == "too_large"
    assert size - 200 < dead.cause.value_bytes < size
    assert not dead.cause.complete


def _send_as(codec: str, size: int, value: bytes, bus: Bus) -> None:
    """Sends as another producer: ours has lower limits."""
    assert isinstance(bus, KafkaBus)
    options = {"message.max.bytes": size + 1_000, "compression.codec": codec}
    producer = Producer({"bootstrap.servers": bus.bootstrap_servers, **options})
    failed: list[object] = []
    producer.produce(BEHAVIOUR, value, partition=0, on_delivery=lambda e, _: failed.append(e))
    producer.flush(20)
    assert failed == [None]
