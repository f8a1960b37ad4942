"""What every bus promises, tried on memory, the embedded broker and Apache Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from streams.bus.contract import Bus, BusError, Consumed, Consumer, Outgoing, Record, last_records
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import TopicSpec

Join = Callable[..., Consumer]
Take = Callable[..., list[Record]]


@pytest.fixture
def topic(bus: Bus, unique: str) -> str:
    name = f"contract-{unique}"
    bus.ensure_topics([TopicSpec(name, 2)])
    return name


def _values(records: list[Record]) -> list[bytes | None]:
    return sorted((r.value for r in records), key=lambda value: value or b"")


def _letters(topic: str, text: str, partition: int | None = 0) -> list[Outgoing]:
    return [Outgoing(topic, letter.encode(), partition=partition) for letter in text]


def test_a_record_comes_back_as_it_was_sent(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    sent = Outgoing(topic, b"\x00v", b"k\xff", partition=1, headers={"a": b"1", "b": b"\x00"})
    bus.producer().send([sent, Outgoing(topic, None, b"tombstone", partition=1)])
    first, second = take(joined(bus, topic, f"g-{topic}"), 2)
    assert (first.topic, first.partition, first.offset) == (topic, 1, 0)
    assert (first.key, first.value, dict(first.headers)) == (
        b"k\xff",
        b"\x00v",
        {"a": b"1", "b": b"\x00"},
    )
    assert first.timestamp_ms > 0
    assert (second.key, second.value, second.headers) == (b"tombstone", None, ())


def test_a_partition_keeps_its_order(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    messages = [Outgoing(topic, str(i).encode(), partition=i % 2) for i in range(200)]
    bus.producer().send(messages)
    got = take(joined(bus, topic, f"g-{topic}"), 200)
    for partition in (0, 1):
        mine = [int(r.value or b"") for r in got if r.partition == partition]
        assert mine == list(range(partition, 200, 2))


def test_equal_keys_share_a_partition(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send([Outgoing(topic, b"v", f"k{i % 7}".encode()) for i in range(70)])
    got = take(joined(bus, topic, f"g-{topic}"), 70)
    assert len({(r.key, r.partition) for r in got}) == 7


def test_what_was_not_committed_is_read_again(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    bus.producer().send(_letters(topic, "abcd"))
    first = joined(bus, topic, f"g-{topic}")
    got = take(first, 4)
    first.commit(got[:2])
    first.close()
    again = take(joined(bus, topic, f"g-{topic}"), 2)
    assert [r.value for r in again] == [b"c", b"d"]


def test_groups_read_apart_from_each_other(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send(_letters(topic, "ab"))
    one, two = joined(bus, topic, f"one-{topic}"), joined(bus, topic, f"two-{topic}")
    assert _values(take(one, 2)) == _values(take(two, 2)) == [b"a", b"b"]


def test_a_reader_from_the_end_sees_only_what_comes_after(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    writer = bus.producer()
    writer.send(_letters(topic, "a") + _letters(topic, "b", partition=1))
    reader = joined(bus, topic, f"g-{topic}", from_start=False)
    writer.send(_letters(topic, "c") + _letters(topic, "d", partition=1))
    assert _values(take(reader, 2)) == [b"c", b"d"]


def test_an_empty_poll_is_an_empty_list(bus: Bus, topic: str, joined: Join) -> None:
    assert joined(bus, topic, f"g-{topic}").poll(10, 0.05) == []


def test_seek_reads_again_from_there(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send(_letters(topic, "abc"))
    reader = joined(bus, topic, f"g-{topic}")
    take(reader, 3)
    reader.seek(topic, 0, 1)
    assert [r.value for r in take(reader, 2)] == [b"b", b"c"]


def test_lag_counts_what_is_left(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send(_letters(topic, "abcde"))
    reader = joined(bus, topic, f"g-{topic}")
    take(reader, 2)
    assert reader.lag() == 3


def test_a_member_knows_its_partitions_and_the_groups_commits(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    bus.producer().send(_letters(topic, "abc"))
    reader = joined(bus, topic, f"g-{topic}")
    got = take(reader, 3)
    assert reader.assignment() == {(topic, 0), (topic, 1)}
    assert reader.committed() == {}
    reader.commit(got[:2])
    assert reader.committed() == {(topic, 0): 2}


def test_a_patient_reader_loses_nothing(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    reader = joined(bus, topic, f"g-{topic}", gather_s=0.2)
    bus.producer().send(_letters(topic, "ab") + _letters(topic, "c", 1))
    assert _values(take(reader, 3)) == [b"a", b"b", b"c"]


def test_two_members_share_the_partitions_and_generation_tells(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    first = joined(bus, topic, f"g-{topic}")
    bus.producer().send(_letters(topic, "a"))
    first.commit(take(first, 1))
    before = first.generation()
    second = joined(bus, topic, f"g-{topic}")
    for _ in range(60):
        rest = first.poll(1, 0.1) + second.poll(1, 0.1)
        assert rest == []
        if second.generation() and first.generation() > before:
            break
    bus.producer().send(_letters(topic, "b", 0) + _letters(topic, "c", 1))
    got = [take(first, 1, polls=10), take(second, 1, polls=10)]
    assert [len(part) for part in got] == [1, 1]
    assert _values(got[0] + got[1]) == [b"b", b"c"]


def test_what_a_poll_read_before_partitions_moved_is_left_to_whoever_has_them_next(
    kafka_bus: KafkaBus, unique: str, joined: Join, take: Take
) -> None:
    topic = f"moved-{unique}"
    kafka_bus.ensure_topics([TopicSpec(topic, 2)])
    kafka_bus.producer().send(_letters(topic, "abcdefgh"))
    first: Any = joined(kafka_bus, topic, "g")
    first.commit(take(first, 1))
    others: list[Consumer] = []
    read = first._consume

    def consume(count: int, timeout_s: float) -> list[Any]:
        """Another member asks for its share between the two readings of one poll."""
        found: list[Any] = read(count, timeout_s)
        if found and not others:
            others.append(joined(kafka_bus, topic, "g"))
            until = time.monotonic() + 2.5  # longer than the heartbeat that brings the word
            while time.monotonic() < until:
                assert not others[0].poll(1, 0.1)
        return found

    first._consume = consume
    got = list(first.poll(100, 5.0))
    assert others, "the poll read nothing"
    for _ in range(100):
        got += [*first.poll(100, 0.05), *others[0].poll(100, 0.05)]
    assert [r.value for r in sorted(got, key=lambda r: r.offset)] == [*map(bytes, zip(b"bcdefgh"))]


def test_ends_and_scan_show_a_partition_as_it_lies(bus: Bus, topic: str) -> None:
    bus.producer().send(_letters(topic, "abcde"))
    assert bus.partitions(topic) == 2
    assert bus.ends(topic) == bus.ends(topic, uncommitted=True) == {0: (0, 5), 1: (0, 0)}
    assert [r.value for r in bus.scan(topic, 0, 1, 4)] == [b"b", b"c", b"d"]
    assert [r.offset for r in bus.scan(topic, 0, 3, 99)] == [3, 4]
    assert list(bus.scan(topic, 1, 0, 0)) == []


def test_marking_the_input_moves_the_group(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    writer = bus.producer()
    writer.send(_letters(topic, "ab"))
    reader = joined(bus, topic, f"g-{topic}")
    got = take(reader, 2)
    writer.send(_letters(topic, "z", partition=1), consumed=Consumed(reader, got[:1]))
    reader.close()
    again = take(joined(bus, topic, f"g-{topic}"), 2)
    assert _values(again) == [b"b", b"z"]


def test_another_partition_count_is_refused(bus: Bus, topic: str) -> None:
    bus.ensure_topics([TopicSpec(topic, 2)])
    with pytest.raises(BusError, match=r"has 2 partitions.*say 3"):
        bus.ensure_topics([TopicSpec(topic, 3)])


def test_a_missing_topic_is_said_at_once(bus: Bus, unique: str) -> None:
    for ask in (
        bus.epoch,
        lambda topic: bus.epochs([topic]),
        bus.ends,
        bus.partitions,
        lambda topic: bus.consumer([topic], "g"),
    ):
        with pytest.raises(BusError, match="ensure_topics"):
            ask(f"absent-{unique}")


def test_an_epoch_is_the_topics_own_and_stays(bus: Bus, topic: str) -> None:
    other = f"{topic}-other"
    bus.ensure_topics([TopicSpec(other, 1)])
    assert bus.epoch(topic) == bus.epoch(topic) != bus.epoch(other)
    assert bus.epochs([other, topic]) == {other: bus.epoch(other), topic: bus.epoch(topic)}
    assert bus.healthy()


def test_a_broker_that_is_not_there_is_not_healthy(free_port: int) -> None:
    bus = KafkaBus(f"127.0.0.1:{free_port}")
    assert not bus.healthy(0.3)


def test_a_transaction_writes_and_marks_together_or_not_at_all(
    kafka_bus: KafkaBus, unique: str, joined: Join, take: Take
) -> None:
    source, target = f"in-{unique}", f"out-{unique}"
    kafka_bus.ensure_topics([TopicSpec(source, 1), TopicSpec(target, 1)])
    kafka_bus.producer().send(_letters(source, "ab"))
    reader = joined(kafka_bus, source, f"g-{unique}")
    got = take(reader, 2)
    writer = kafka_bus.producer(f"writer-{unique}")
    too_large = Outgoing(target, bytes(2_000_000))
    with pytest.raises(BusError):
        writer.send([*_letters(target, "x"), too_large], consumed=Consumed(reader, got))
    writer.send(_letters(target, "y"), consumed=Consumed(reader, got[:1]))
    reader.close()
    assert [r.value for r in take(joined(kafka_bus, source, f"g-{unique}"), 1)] == [b"b"]
    stop = kafka_bus.ends(target)[0][1]
    (only,) = kafka_bus.scan(target, 0, 0, stop)
    assert only.value == b"y"
    assert only.offset + 1 < stop  # the transaction's mark
    assert last_records(kafka_bus, target) == {0: only.offset}
    assert last_records(kafka_bus, source) == {0: 1}


def test_a_second_writer_of_the_same_name_fences_the_first(
    kafka_bus: KafkaBus, unique: str
) -> None:
    topic = f"fence-{unique}"
    kafka_bus.ensure_topics([TopicSpec(topic, 1)])
    zombie = kafka_bus.producer(f"writer-{unique}")
    zombie.send(_letters(topic, "a"))
    kafka_bus.producer(f"writer-{unique}").send(_letters(topic, "b"))
    with pytest.raises(BusError):
        zombie.send(_letters(topic, "c"))
    stop = kafka_bus.ends(topic)[0][1]
    assert [r.value for r in kafka_bus.scan(topic, 0, 0, stop)] == [b"a", b"b"]
