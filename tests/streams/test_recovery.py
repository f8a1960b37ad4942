"""What a broker lost of a committed transaction is rewritten, and nothing twice.

A broker that is killed during a commit may lose some of its markers (ADR 0018). The tests bring
this about in real transactions: some messages are written in another transaction, which is
aborted, while the commit succeeds and lists them.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from confluent_kafka import TopicPartition as RdTopicPartition
from confluent_kafka.admin import AdminClient
from ingest_harness import IngestHarness, event, make_harness

from streams.bus.commit_metadata import (
    MAX_BYTES,
    TopicPartition,
    WrittenRange,
    decode,
    encode,
    with_written,
)
from streams.bus.contract import BusError, Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.bus.transaction import InputTransactions
from streams.contract.topics import BEHAVIOUR_DEAD, ENTITY_TOPIC, EVENTS_BY_USER, TopicSpec
from streams.ingest import recovery

IDS = [f"e{i:02d}" for i in range(40)]
BAD = [b"bad", b"worse"]
TARGETS: dict[str, TopicPartition] = {
    "a user's": (EVENTS_BY_USER, 1),
    "a dead letter's": (BEHAVIOUR_DEAD, 0),
    "a video's": (ENTITY_TOPIC["video"], 0),
}


LOST = [(True, [target]) for target in TARGETS.values()] + [(False, list(TARGETS.values()))]
LOST_IDS = [*(f"{name}, sole batcher" for name in TARGETS), "all, replica"]


@pytest.fixture(params=[True, False], ids=["sole batcher", "replica"])
def harness(request: pytest.FixtureRequest, wiped_kafka: str) -> IngestHarness:
    return make_harness(KafkaBus(wiped_kafka), True, request.param)


@pytest.mark.parametrize(("sole_consumer", "targets"), LOST, ids=LOST_IDS)
def test_messages_that_a_commit_lists_and_readers_cannot_see_are_rewritten_once(
    wiped_kafka: str, sole_consumer: bool, targets: Sequence[TopicPartition]
) -> None:
    harness = make_harness(KafkaBus(wiped_kafka), True, sole_consumer)
    _send(harness, IDS[:20])
    _run_losing(harness, targets)
    assert _message_count(harness) < 20 + 20 + 2
    _send(harness, IDS[20:])
    for _ in range(2):  # the second run has nothing to recover
        harness.run_until_done()
        assert (harness.counted(), len(harness.rows())) == (IDS, len(IDS))
        assert harness.causes() == ["not_json"] * 4
        assert harness.rows(ENTITY_TOPIC["video"])["event_id"].sort().to_list() == IDS


def test_a_loss_whose_input_expired_does_not_end_the_loop(wiped_kafka: str) -> None:
    harness = make_harness(KafkaBus(wiped_kafka), True, True)
    _send(harness, IDS[:20])
    _run_losing(harness, [TARGETS["a video's"]])
    kept = sorted(harness.rows(ENTITY_TOPIC["video"])["event_id"])
    admin: Any = AdminClient({"bootstrap.servers": wiped_kafka})
    ends = harness.bus.ends(EVENTS_BY_USER).items()
    gone = [RdTopicPartition(EVENTS_BY_USER, p, end) for p, (_, end) in ends]
    for done in admin.delete_records(gone).values():
        done.result(10.0)
    _send(harness, IDS[20:])
    harness.run_until_done()
    assert 0 < len(kept) < 20
    assert sorted(harness.rows(ENTITY_TOPIC["video"])["event_id"]) == kept + IDS[20:]


def test_a_lost_commit_writes_no_message_twice(harness: IngestHarness) -> None:
    _send(harness, IDS)
    for loop in harness.loops():
        loop._producer._commit_input = lambda *_: None
        _run_to_end(loop)
        loop.close()
    harness.run_until_done()
    assert (harness.counted(), len(harness.rows())) == (IDS, len(IDS))
    assert harness.causes() == ["not_json"] * 2
    assert harness.rows(ENTITY_TOPIC["video"])["event_id"].sort().to_list() == IDS


def test_abort_open_leaves_nothing_open_and_nothing_readable(
    kafka_bus: KafkaBus, unique: str
) -> None:
    topic = f"t-{unique}"
    kafka_bus.ensure_topics([TopicSpec(topic, 2)])
    reader = kafka_bus.consumer([topic], f"g-{unique}")
    while not reader.assignment_version():
        reader.poll(1, 0.1)
    writer = kafka_bus.producer(f"w-{unique}")
    writer.abort_open([(topic, 0), (topic, 1)], reader)
    ends = kafka_bus.ends(topic)
    assert ends == kafka_bus.ends(topic, uncommitted=True)
    assert all(
        stop > 0 and not list(kafka_bus.scan(topic, p, 0, stop)) for p, (_, stop) in ends.items()
    )
    assert reader.committed() == {}
    writer.send([Outgoing(topic, b"a", partition=0)])
    assert [r.value for r in reader.poll(10, 10.0)] == [b"a"]


def test_a_commit_carries_its_metadata(kafka_bus: KafkaBus, unique: str) -> None:
    source, target = f"in-{unique}", f"out-{unique}"
    kafka_bus.ensure_topics([TopicSpec(source, 1), TopicSpec(target, 2)])
    kafka_bus.producer().send([Outgoing(source, b"abc"[i : i + 1], partition=0) for i in range(3)])
    reader = kafka_bus.consumer([source], f"g-{unique}")
    got = _read(reader, 3)
    writer = kafka_bus.producer(f"w-{unique}")
    out = [Outgoing(target, b"x", partition=p) for p in (0, 1, 1)]
    transactions = InputTransactions(writer, reader)
    transactions.send(out, got[:2])
    transactions.send(out[:1], got[2:])
    expected = {(target, 0): WrittenRange(2, 2, 3), (target, 1): WrittenRange(1, 0, 2)}
    assert reader.commit_metadata() == {(source, 0): expected}
    transactions.drop_targets((source, 0), [(target, 1)])
    transactions.send([], got[2:], {(source, 0): 3})
    reader.close()
    again = kafka_bus.consumer([source], f"g-{unique}")
    while not again.assignment_version():
        again.poll(1, 0.1)
    assert again.commit_metadata() == {(source, 0): {(target, 0): WrittenRange(2, 2, 3)}}
    assert again.committed() == {(source, 0): 3}


def test_another_writers_open_transaction_is_reported(
    wiped_kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_OPEN_TIMEOUT_S", 0.5)
    harness = make_harness(KafkaBus(wiped_kafka), True, True)
    other: Any = harness.bus.producer("other")
    _send(harness, IDS)
    other._producer.begin_transaction()
    other._write([Outgoing(EVENTS_BY_USER, b"", partition=p) for p in (0, 1)])
    loop = harness.batcher()
    _run_to_end(loop)
    loop.close()
    with pytest.raises(BusError, match="a transaction is open there"):
        _run_to_end(harness.batcher())
    other._abort()


def test_recreated_targets_are_not_refilled(wiped_kafka: str) -> None:
    harness = make_harness(KafkaBus(wiped_kafka), True, True)
    _send(harness, IDS)
    loop: Any = harness.batcher()
    real = loop._producer._write
    loop._producer._write = lambda out: {target: at + 1_000 for target, at in real(out).items()}
    _run_to_end(loop)
    loop.close()
    harness.run_until_done()
    assert (harness.counted(), len(harness.rows())) == (IDS, len(IDS))


def test_metadata_survives_encoding_and_fits_beside_an_offset() -> None:
    metadata = with_written({}, {("t", 0): 7, ("u", 3): 9}, 4, 6)
    assert (
        decode(encode(metadata))
        == metadata
        == {("t", 0): WrittenRange(7, 4, 6), ("u", 3): WrittenRange(9, 4, 6)}
    )
    assert encode({}) == ""
    assert decode("") == decode(None) == decode("[1]") == decode("x") == {}
    old = with_written({}, {("old", p): 10**9 + p for p in range(500)}, 0, 1)
    many = with_written(old, {("new", p): 10**9 + p for p in range(50)}, 1, 2)
    text = encode(many)
    assert len(text) <= MAX_BYTES
    kept = decode(text)
    assert {("new", p) for p in range(50)} <= kept.keys()
    assert all(many[target] == step for target, step in kept.items())


def _send(harness: IngestHarness, ids: Sequence[str]) -> None:
    good = [event(e, f"u{e}", video_id=f"v{e}") for e in ids]
    for partition, half in enumerate((good[::2], good[1::2])):
        harness.send(*half, BAD[partition], partition=partition)


def _run_losing(harness: IngestHarness, targets: Collection[TopicPartition]) -> None:
    """Runs each loop once; the broker loses what it writes to `targets`."""
    for loop in harness.loops():
        _lose_writes(harness, loop, targets)
        _run_to_end(loop)
        loop.close()


def _lose_writes(harness: IngestHarness, loop: Any, targets: Collection[TopicPartition]) -> None:
    real = loop._producer._write
    ghost: Any = harness.bus.producer(f"ghost-{uuid.uuid4().hex}")

    def write(out: Sequence[Outgoing]) -> dict[TopicPartition, int]:
        lost = [m for m in out if (m.topic, m.partition) in targets and m.value is not None]
        written: dict[TopicPartition, int] = real([m for m in out if m not in lost])
        if lost:
            ghost._producer.begin_transaction()
            written |= ghost._write(lost)
            ghost._producer.abort_transaction(10.0)
        return written

    loop._producer._write = write


def _run_to_end(loop: Any) -> None:
    """Until the loop has processed all of its input."""
    while not loop.run_once(0.2):
        pass
    while loop.run_once(0.2):
        pass


def _message_count(harness: IngestHarness) -> int:
    videos = harness.rows(ENTITY_TOPIC["video"])
    return len(harness.rows()) + len(videos) + len(harness.causes())


def _read(reader: Any, count: int) -> list[Any]:
    got: list[Any] = []
    while len(got) < count:
        got += reader.poll(count, 0.2)
    return got
