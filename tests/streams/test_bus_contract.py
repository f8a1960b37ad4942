"""The bus contract, on memory, the embedded broker and Apache Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from streams.bus.contract import (
    MAX_MESSAGE_BYTES,
    Bus,
    BusError,
    Consumed,
    Consumer,
    MessagesRejected,
    Outgoing,
    last_record_offsets,
)
from streams.bus.kafka.bus import KafkaBus
from streams.bus.polled import Record
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


def _messages(topic: str, text: str, partition: int | None = 0) -> list[Outgoing]:
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


def test_a_message_that_is_too_large_is_rejected_alone(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    large = Outgoing(topic, b"x" * (MAX_MESSAGE_BYTES + 1), partition=0)
    first, last = _messages(topic, "ab")
    with pytest.raises(MessagesRejected) as rejected:
        bus.producer().send([first, large, last])
    assert list(rejected.value.reasons) == [1]
    reader = joined(bus, topic, f"g-{topic}")
    assert [record.value for record in take(reader, 2)] == [b"a", b"b"]
    assert reader.poll(10, 0.2) == []


def test_equal_keys_share_a_partition(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send([Outgoing(topic, b"v", f"k{i % 7}".encode()) for i in range(70)])
    got = take(joined(bus, topic, f"g-{topic}"), 70)
    assert len({(r.key, r.partition) for r in got}) == 7


def test_uncommitted_records_are_read_again(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send(_messages(topic, "abcd"))
    first = joined(bus, topic, f"g-{topic}")
    got = take(first, 4)
    first.commit(got[:2])
    first.close()
    again = take(joined(bus, topic, f"g-{topic}"), 2)
    assert [r.value for r in again] == [b"c", b"d"]


def test_groups_are_independent(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send(_messages(topic, "ab"))
    one, two = joined(bus, topic, f"one-{topic}"), joined(bus, topic, f"two-{topic}")
    assert _values(take(one, 2)) == _values(take(two, 2)) == [b"a", b"b"]


def test_a_consumer_from_the_end_reads_only_later_records(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    writer = bus.producer()
    writer.send(_messages(topic, "a") + _messages(topic, "b", partition=1))
    reader = joined(bus, topic, f"g-{topic}", from_start=False)
    writer.send(_messages(topic, "c") + _messages(topic, "d", partition=1))
    assert _values(take(reader, 2)) == [b"c", b"d"]


def test_an_empty_poll_is_an_empty_list(bus: Bus, topic: str, joined: Join) -> None:
    assert joined(bus, topic, f"g-{topic}").poll(10, 0.05) == []


def test_seek_repeats_records_from_the_offset(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    bus.producer().send(_messages(topic, "abc"))
    reader = joined(bus, topic, f"g-{topic}")
    take(reader, 3)
    reader.seek(topic, 0, 1)
    assert [r.value for r in take(reader, 2)] == [b"b", b"c"]


def test_lag_counts_unread_records(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    bus.producer().send(_messages(topic, "abcde"))
    reader = joined(bus, topic, f"g-{topic}")
    take(reader, 2)
    assert reader.lag() == 3


def test_a_member_reports_its_assignment_and_the_groups_commits(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    bus.producer().send(_messages(topic, "abc"))
    reader = joined(bus, topic, f"g-{topic}")
    got = take(reader, 3)
    assert reader.assignment() == {(topic, 0), (topic, 1)}
    assert reader.committed() == {}
    reader.commit(got[:2])
    assert reader.committed() == {(topic, 0): 2}


def test_a_fetch_max_wait_loses_nothing(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    reader = joined(bus, topic, f"g-{topic}", fetch_max_wait_s=0.2)
    bus.producer().send(_messages(topic, "ab") + _messages(topic, "c", 1))
    assert _values(take(reader, 3)) == [b"a", b"b", b"c"]


def test_two_members_share_the_partitions_and_the_assignment_version_changes(
    bus: Bus, topic: str, joined: Join, take: Take
) -> None:
    first = joined(bus, topic, f"g-{topic}")
    bus.producer().send(_messages(topic, "a"))
    first.commit(take(first, 1))
    before = first.assignment_version()
    second = joined(bus, topic, f"g-{topic}")
    for _ in range(60):
        assert first.poll(1, 0.1) + second.poll(1, 0.1) == []
        if second.assignment_version() and first.assignment_version() > before:
            break
    bus.producer().send(_messages(topic, "b", 0) + _messages(topic, "c", 1))
    got = [take(first, 1, polls=10), take(second, 1, polls=10)]
    assert [len(part) for part in got] == [1, 1]
    assert _values(got[0] + got[1]) == [b"b", b"c"]


def test_records_fetched_before_a_rebalance_are_left_to_the_new_owner(
    kafka_bus: KafkaBus, unique: str, joined: Join, take: Take
) -> None:
    topic = f"moved-{unique}"
    kafka_bus.ensure_topics([TopicSpec(topic, 2)])
    kafka_bus.producer().send(_messages(topic, "abcdefgh"))
    first: Any = joined(kafka_bus, topic, "g")
    first.commit(take(first, 1))
    others: list[Consumer] = []
    read = first._consume

    def consume(count: int, timeout_s: float) -> list[Any]:
        """Another member joins between the two fetches of one poll."""
        found: list[Any] = read(count, timeout_s)
        if found and not others:
            others.append(joined(kafka_bus, topic, "g"))
            until = time.monotonic() + 2.5  # longer than the heartbeat interval
            while time.monotonic() < until:
                assert not others[0].poll(1, 0.1)
        return found

    first._consume = consume
    got = list(first.poll(100, 5.0))
    assert others, "the poll read nothing"
    for _ in range(100):
        got += [*first.poll(100, 0.05), *others[0].poll(100, 0.05)]
    assert [r.value for r in sorted(got, key=lambda r: r.offset)] == [*map(bytes, zip(b"bcdefgh"))]


def test_ends_and_scan_show_a_partition(bus: Bus, topic: str) -> None:
    bus.producer().send(_messages(topic, "abcde"))
    assert bus.partitions(topic) == 2
    assert bus.ends(topic) == bus.ends(topic, uncommitted=True) == {0: (0, 5), 1: (0, 0)}
    assert [r.value for r in bus.scan(topic, 0, 1, 4)] == [b"b", b"c", b"d"]
    assert [r.offset for r in bus.scan(topic, 0, 3, 99)] == [3, 4]
    assert list(bus.scan(topic, 1, 0, 0)) == []


def test_consumed_input_is_committed(bus: Bus, topic: str, joined: Join, take: Take) -> None:
    writer = bus.producer()
    writer.send(_messages(topic, "ab"))
    reader = joined(bus, topic, f"g-{topic}")
    got = take(reader, 2)
    writer.send(_messages(topic, "z", partition=1), consumed=Consumed(reader, got[:1]))
    reader.close()
    again = take(joined(bus, topic, f"g-{topic}"), 2)
    assert _values(again) == [b"b", b"z"]


def test_another_partition_count_is_refused(bus: Bus, topic: str) -> None:
    bus.ensure_topics([TopicSpec(topic, 2)])
    with pytest.raises(BusError, match=r"has 2 partitions.*say 3"):
        bus.ensure_topics([TopicSpec(topic, 3)])


def test_a_missing_topic_raises_at_once(bus: Bus, unique: str) -> None:
    for ask in (
        bus.topic_id,
        lambda topic: bus.topic_ids([topic]),
        bus.ends,
        bus.partitions,
        lambda topic: bus.consumer([topic], "g"),
    ):
        with pytest.raises(BusError, match="ensure_topics"):
            ask(f"absent-{unique}")


def test_topic_ids_are_distinct_and_stable(bus: Bus, topic: str) -> None:
    other = f"{topic}-other"
    bus.ensure_topics([TopicSpec(other, 1)])
    assert bus.topic_id(topic) == bus.topic_id(topic) != bus.topic_id(other)
    assert bus.topic_ids([other, topic]) == {other: bus.topic_id(other), topic: bus.topic_id(topic)}
    assert bus.healthy()


def test_an_absent_broker_is_not_healthy(free_port: int) -> None:
    bus = KafkaBus(f"127.0.0.1:{free_port}")
    assert not bus.healthy(0.3)


def test_a_transaction_writes_and_commits_together_or_not_at_all(
    kafka_bus: KafkaBus, unique: str, joined: Join, take: Take
) -> None:
    source, target = f"in-{unique}", f"out-{unique}"
    kafka_bus.ensure_topics([TopicSpec(source, 1), TopicSpec(target, 1)])
    kafka_bus.producer().send(_messages(source, "ab"))
    reader = joined(kafka_bus, source, f"g-{unique}")
    got = take(reader, 2)
    writer = kafka_bus.producer(f"writer-{unique}")
    too_large = Outgoing(target, bytes(2_000_000))
    with pytest.raises(BusError):
        writer.send([*_messages(target, "x"), too_large], consumed=Consumed(reader, got))
    writer.send(_messages(target, "y"), consumed=Consumed(reader, got[:1]))
    reader.close()
    assert [r.value for r in take(joined(kafka_bus, source, f"g-{unique}"), 1)] == [b"b"]
    stop = kafka_bus.ends(target)[0][1]
    (only,) = kafka_bus.scan(target, 0, 0, stop)
    assert only.value == b"y"
    assert only.offset + 1 < stop  # the transaction's marker
    assert last_record_offsets(kafka_bus, target) == {0: only.offset}
    assert last_record_offsets(kafka_bus, source) == {0: 1}


def test_a_producer_fences_an_earlier_one_with_the_same_id(
    kafka_bus: KafkaBus, unique: str
) -> None:
    topic = f"fence-{unique}"
    kafka_bus.ensure_topics([TopicSpec(topic, 1)])
    zombie = kafka_bus.producer(f"writer-{unique}")
    zombie.send(_messages(topic, "a"))
    kafka_bus.producer(f"writer-{unique}").send(_messages(topic, "b"))
    with pytest.raises(BusError):
        zombie.send(_messages(topic, "c"))
    stop = kafka_bus.ends(topic)[0][1]
    assert [r.value for r in kafka_bus.scan(topic, 0, 0, stop)] == [b"a", b"b"]
