"""What a broker lost of a committed transaction is written again, and nothing twice.

A broker that is killed amid a commit may come back without some of its markers (ADR 0018). Here
the same is brought about on purpose, in real transactions: some messages are written by
another transaction, which is aborted, while the commit goes through and names them.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from door_mill import Mill, event, make_mill

from streams.bus.commit_metadata import MAX_BYTES, Step, Target, after, decode, encode
from streams.bus.contract import BusError, Consumed, Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import BEHAVIOUR_DEAD, ENTITY_TOPIC, EVENTS_BY_USER, TopicSpec
from streams.ingest import recovery

IDS = [f"e{i:02d}" for i in range(40)]
BAD = [b"bad", b"worse"]
TARGETS: dict[str, Target] = {
    "a user's": (EVENTS_BY_USER, 1),
    "a dead letter's": (BEHAVIOUR_DEAD, 0),
    "a video's": (ENTITY_TOPIC["video"], 0),
}


LOST = [(True, [target]) for target in TARGETS.values()] + [(False, list(TARGETS.values()))]
LOST_IDS = [*(f"{name}, by the only door" for name in TARGETS), "all, by one of many"]


@pytest.fixture(params=[True, False], ids=["the only door", "one of many"])
def door(request: pytest.FixtureRequest, wiped_kafka: str) -> Mill:
    return make_mill(KafkaBus(wiped_kafka), True, request.param)


@pytest.mark.parametrize(("alone", "targets"), LOST, ids=LOST_IDS)
def test_what_a_commit_names_and_nobody_can_read_is_written_again_once(
    wiped_kafka: str, alone: bool, targets: Sequence[Target]
) -> None:
    door = make_mill(KafkaBus(wiped_kafka), True, alone)
    _send(door, IDS[:20])
    _run_losing(door, targets)
    assert _all_there(door) < 20 + 20 + 2
    _send(door, IDS[20:])
    for _ in range(2):  # and the second life finds nothing to mend
        door.run_until_quiet()
        assert (door.counted(), len(door.rows())) == (IDS, len(IDS))
        assert door.causes() == ["not_json"] * 4
        assert door.rows(ENTITY_TOPIC["video"])["event_id"].sort().to_list() == IDS


def test_a_loss_whose_input_has_gone_does_not_end_the_loop(wiped_kafka: str) -> None:
    door = make_mill(KafkaBus(wiped_kafka), True, True)
    _send(door, IDS[:20])
    _run_losing(door, [TARGETS["a video's"]])
    kept = sorted(door.rows(ENTITY_TOPIC["video"])["event_id"])
    admin: Any = AdminClient({"bootstrap.servers": wiped_kafka})
    ends = door.bus.ends(EVENTS_BY_USER).items()
    gone = [TopicPartition(EVENTS_BY_USER, p, end) for p, (_, end) in ends]
    for done in admin.delete_records(gone).values():
        done.result(10.0)
    _send(door, IDS[20:])
    door.run_until_quiet()
    assert 0 < len(kept) < 20
    assert sorted(door.rows(ENTITY_TOPIC["video"])["event_id"]) == kept + IDS[20:]


def test_a_lost_commit_does_not_write_its_messages_twice(door: Mill) -> None:
    _send(door, IDS)
    for loop in door.loops():
        loop._producer._mark = lambda *_: None
        _turn_until_written(loop)
        loop.close()
    door.run_until_quiet()
    assert (door.counted(), len(door.rows())) == (IDS, len(IDS))
    assert door.causes() == ["not_json"] * 2
    assert door.rows(ENTITY_TOPIC["video"])["event_id"].sort().to_list() == IDS


def test_settling_leaves_nothing_open_and_nothing_to_read(kafka_bus: KafkaBus, unique: str) -> None:
    topic = f"t-{unique}"
    kafka_bus.ensure_topics([TopicSpec(topic, 2)])
    reader = kafka_bus.consumer([topic], f"g-{unique}")
    while not reader.generation():
        reader.poll(1, 0.1)
    writer = kafka_bus.producer(f"w-{unique}")
    writer.settle([(topic, 0), (topic, 1)], reader)
    ends = kafka_bus.ends(topic)
    assert ends == kafka_bus.ends(topic, uncommitted=True)
    assert all(
        stop > 0 and not list(kafka_bus.scan(topic, p, 0, stop)) for p, (_, stop) in ends.items()
    )
    assert reader.committed() == {}
    writer.send([Outgoing(topic, b"a", partition=0)])
    assert [r.value for r in reader.poll(10, 10.0)] == [b"a"]


def test_a_commit_carries_its_trail(kafka_bus: KafkaBus, unique: str) -> None:
    source, target = f"in-{unique}", f"out-{unique}"
    kafka_bus.ensure_topics([TopicSpec(source, 1), TopicSpec(target, 2)])
    kafka_bus.producer().send([Outgoing(source, b"abc"[i : i + 1], partition=0) for i in range(3)])
    reader = kafka_bus.consumer([source], f"g-{unique}")
    got = _read(reader, 3)
    writer = kafka_bus.producer(f"w-{unique}")
    out = [Outgoing(target, b"x", partition=p) for p in (0, 1, 1)]
    writer.send(out, consumed=Consumed(reader, got[:2]))
    writer.send(out[:1], consumed=Consumed(reader, got[2:]))
    expected = {(target, 0): Step(2, 2, 3), (target, 1): Step(1, 0, 2)}
    assert reader.trails() == {(source, 0): expected}
    reader.forget((source, 0), [(target, 1)])
    writer.send([], consumed=Consumed(reader, got[2:], {(source, 0): 3}))
    reader.close()
    again = kafka_bus.consumer([source], f"g-{unique}")
    while not again.generation():
        again.poll(1, 0.1)
    assert again.trails() == {(source, 0): {(target, 0): Step(2, 2, 3)}}
    assert again.committed() == {(source, 0): 3}


def test_a_strangers_open_transaction_is_said(
    wiped_kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_OPEN_S", 0.5)
    door = make_mill(KafkaBus(wiped_kafka), True, True)
    stranger: Any = door.bus.producer("stranger")
    _send(door, IDS)
    stranger._producer.begin_transaction()
    stranger._write([Outgoing(EVENTS_BY_USER, b"", partition=p) for p in (0, 1)])
    loop = door.batcher()
    _turn_until_written(loop)
    loop.close()
    with pytest.raises(BusError, match="a transaction is open there"):
        _turn_until_written(door.batcher())
    stranger._abort()


def test_targets_that_began_again_are_not_filled(wiped_kafka: str) -> None:
    door = make_mill(KafkaBus(wiped_kafka), True, True)
    _send(door, IDS)
    loop: Any = door.batcher()
    real = loop._producer._write
    loop._producer._write = lambda out: {target: at + 1_000 for target, at in real(out).items()}
    _turn_until_written(loop)
    loop.close()
    door.run_until_quiet()
    assert (door.counted(), len(door.rows())) == (IDS, len(IDS))


def test_a_trail_comes_back_as_it_was_and_never_outgrows_its_place() -> None:
    trail = after({}, {("t", 0): 7, ("u", 3): 9}, 4, 6)
    assert decode(encode(trail)) == trail == {("t", 0): Step(7, 4, 6), ("u", 3): Step(9, 4, 6)}
    assert encode({}) == ""
    assert decode("") == decode(None) == decode("[1]") == decode("x") == {}
    old = after({}, {("old", p): 10**9 + p for p in range(500)}, 0, 1)
    many = after(old, {("new", p): 10**9 + p for p in range(50)}, 1, 2)
    text = encode(many)
    assert len(text) <= MAX_BYTES
    kept = decode(text)
    assert {("new", p) for p in range(50)} <= kept.keys()
    assert all(many[target] == step for target, step in kept.items())


def _send(door: Mill, ids: Sequence[str]) -> None:
    good = [event(e, f"u{e}", video_id=f"v{e}") for e in ids]
    for partition, half in enumerate((good[::2], good[1::2])):
        door.send(*half, BAD[partition], partition=partition)


def _run_losing(door: Mill, targets: Collection[Target]) -> None:
    """One life of each loop, of which the broker loses what it writes to `targets`."""
    for loop in door.loops():
        _lose(door, loop, targets)
        _turn_until_written(loop)
        loop.close()


def _lose(door: Mill, loop: Any, targets: Collection[Target]) -> None:
    real = loop._producer._write
    ghost: Any = door.bus.producer(f"ghost-{uuid.uuid4().hex}")

    def write(out: Sequence[Outgoing]) -> dict[Target, int]:
        lost = [m for m in out if (m.topic, m.partition) in targets and m.value is not None]
        written: dict[Target, int] = real([m for m in out if m not in lost])
        if lost:
            ghost._producer.begin_transaction()
            written |= ghost._write(lost)
            ghost._producer.abort_transaction(10.0)
        return written

    loop._producer._write = write


def _turn_until_written(loop: Any) -> None:
    """Until the loop has worked off everything that there is."""
    while not loop.turn(0.2):
        pass
    while loop.turn(0.2):
        pass


def _all_there(door: Mill) -> int:
    videos = door.rows(ENTITY_TOPIC["video"])
    return len(door.rows()) + len(videos) + len(door.causes())


def _read(reader: Any, count: int) -> list[Any]:
    got: list[Any] = []
    while len(got) < count:
        got += reader.poll(count, 0.2)
    return got
