"""The bus in memory: partitions, groups and commits without a broker.

Knows everything that `streams.bus.contract` promises, within one process. Does not persist
anything. Ships so that users can test their own code; the contract suite holds it to what
Kafka does. Writes are atomic, so there is nothing uncommitted to read.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from streams.bus.commit_metadata import CommitMetadata, TopicPartition
from streams.bus.contract import (
    MAX_MESSAGE_BYTES,
    BusError,
    Consumed,
    Consumer,
    MessagesRejected,
    Outgoing,
    message_bytes,
    partition_mismatch,
    too_large,
)
from streams.bus.polled import Polled, Record, next_offsets
from streams.contract.topics import TopicSpec


@dataclass
class _Topic:
    topic_id: str
    partitions: list[list[Record]]


@dataclass
class _Group:
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    members: list[MemoryConsumer] = field(default_factory=list)


class MemoryBus:
    """Implements `streams.bus.contract.Bus`. Safe to share between threads."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._changed = threading.Condition(threading.RLock())
        self._round_robin = itertools.count()

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        with self._changed:
            for spec in specs:
                topic = self._topics.get(spec.name)
                if topic is None:
                    topic_id = uuid.uuid4().hex
                    self._topics[spec.name] = _Topic(topic_id, [[] for _ in range(spec.partitions)])
                elif len(topic.partitions) != spec.partitions:
                    raise BusError(partition_mismatch(spec, len(topic.partitions)))

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        return {topic: self.topic_id(topic) for topic in topics}

    def topic_id(self, topic: str) -> str:
        with self._changed:
            return self._topic(topic).topic_id

    def partitions(self, topic: str) -> int:
        with self._changed:
            return len(self._topic(topic).partitions)

    def ends(self, topic: str, *, uncommitted: bool = False) -> dict[int, tuple[int, int]]:
        del uncommitted  # writes are atomic
        with self._changed:
            return {p: (0, len(rows)) for p, rows in enumerate(self._topic(topic).partitions)}

    def scan(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        with self._changed:
            rows = self._topic(topic).partitions[partition][max(start, 0) : stop]
        return iter(rows)

    def producer(
        self, transactional_id: str | None = None, *, timeout_s: float = 30.0
    ) -> MemoryProducer:
        del timeout_s  # every write is immediate
        return MemoryProducer(self, transactional_id is not None)

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        fetch_max_wait_s: float = 0.0,
    ) -> MemoryConsumer:
        del fetch_max_wait_s  # a response costs nothing here
        with self._changed:
            for topic in topics:
                self._topic(topic)
            members = self._groups.setdefault(group, _Group())
            consumer = MemoryConsumer(self, members, tuple(topics), from_start)
            members.members.append(consumer)
            self._rebalance(members)
        return consumer

    def healthy(self, timeout_s: float = 1.0) -> bool:
        del timeout_s
        return True

    def restart(self) -> None:
        """Drops records and commits and changes topic ids, as a broker without storage does."""
        with self._changed:
            for topic in self._topics.values():
                topic.topic_id = uuid.uuid4().hex
                topic.partitions = [[] for _ in topic.partitions]
            for group in self._groups.values():
                group.offsets.clear()
                self._rebalance(group)

    def _topic(self, name: str) -> _Topic:
        try:
            return self._topics[name]
        except KeyError:
            raise BusError(f"topic {name!r} does not exist: call ensure_topics first") from None

    def _rebalance(self, group: _Group) -> None:
        for member in group.members:
            member._assign({})
        for topic in sorted({t for member in group.members for t in member.topics}):
            members = [m for m in group.members if topic in m.topics]
            for partition, rows in enumerate(self._topic(topic).partitions):
                member = members[partition % len(members)]
                source = (topic, partition)
                start = group.offsets.get(source, 0 if member.from_start else len(rows))
                member._positions[source] = start

    def _write(
        self, messages: Sequence[Outgoing], consumed: Consumed | None, *, all_or_none: bool
    ) -> None:
        now_ms = time.time_ns() // 1_000_000
        limit = self._max_message_bytes
        rejected = {
            index: too_large(size, limit)
            for index, size in enumerate(map(message_bytes, messages))
            if size > limit
        }
        if rejected and all_or_none:
            raise MessagesRejected(rejected)
        with self._changed:
            taken = [m for index, m in enumerate(messages) if index not in rejected]
            targets = [(m, *self._partition_of(m)) for m in taken]
            if consumed is not None and not rejected:
                consumed.consumer.commit(consumed.records)
            for message, partition, rows in targets:
                headers = tuple(message.headers.items())
                at = (message.topic, partition, len(rows))
                rows.append(Record(*at, message.key, message.value, headers, now_ms))
            self._changed.notify_all()
        if rejected:
            raise MessagesRejected(rejected)

    def _partition_of(self, message: Outgoing) -> tuple[int, list[Record]]:
        partitions = self._topic(message.topic).partitions
        partition = message.partition
        if partition is None:
            number = next(self._round_robin) if message.key is None else zlib.crc32(message.key)
            partition = number % len(partitions)
        if not 0 <= partition < len(partitions):
            raise BusError(f"{message.topic!r} has no partition {partition}")
        return partition, partitions[partition]


class MemoryProducer:
    def __init__(self, bus: MemoryBus, transactional: bool) -> None:
        self._bus, self._transactional = bus, transactional

    def send(
        self, messages: Sequence[Outgoing], *, consumed: Consumed | None = None
    ) -> Mapping[TopicPartition, CommitMetadata]:
        self._bus._write(messages, consumed, all_or_none=self._transactional)
        return {}

    def abort_open(self, targets: Sequence[TopicPartition], consumer: Consumer) -> None:
        """Does nothing: no write is ever left open."""

    def close(self) -> None:
        """Does nothing."""


class MemoryConsumer:
    def __init__(
        self, bus: MemoryBus, group: _Group, topics: tuple[str, ...], from_start: bool
    ) -> None:
        self._bus, self._group = bus, group
        self.topics, self.from_start = topics, from_start
        self._positions: dict[TopicPartition, int] = {}
        self._assignment_version = 0

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        deadline = time.monotonic() + timeout_s
        with self._bus._changed:
            while not (records := self._take(max_records)):
                left = deadline - time.monotonic()
                if left <= 0 or not self._bus._changed.wait(left):
                    return Polled(self._take(max_records))
            return Polled(records)

    def commit(self, records: Sequence[Record]) -> None:
        done = next_offsets(records)
        with self._bus._changed:
            revoked = [source for source in done if source not in self._positions]
            if revoked:
                raise BusError(f"{revoked[0]} is assigned to another member now, which rereads it")
            self._group.offsets.update(done)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        with self._bus._changed:
            if (topic, partition) not in self._positions:
                raise BusError(f"{topic}/{partition} is not assigned to this consumer")
            self._positions[topic, partition] = offset

    def lag(self) -> int:
        with self._bus._changed:
            return sum(
                max(0, len(self._bus._topic(topic).partitions[partition]) - position)
                for (topic, partition), position in self._positions.items()
            )

    def assignment(self) -> frozenset[TopicPartition]:
        with self._bus._changed:
            return frozenset(self._positions)

    def committed(self) -> dict[TopicPartition, int]:
        with self._bus._changed:
            offsets = self._group.offsets
            return {source: offsets[source] for source in self._positions if source in offsets}

    def commit_metadata(self) -> dict[TopicPartition, CommitMetadata]:
        return {}  # nothing is ever lost

    def assignment_version(self) -> int:
        return self._assignment_version

    def close(self) -> None:
        with self._bus._changed:
            if self in self._group.members:
                self._group.members.remove(self)
                self._positions = {}
                self._bus._rebalance(self._group)

    def _assign(self, positions: dict[TopicPartition, int]) -> None:
        self._positions = positions
        self._assignment_version += 1

    def _take(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        for (topic, partition), position in self._positions.items():
            rows = self._bus._topic(topic).partitions[partition]
            part = rows[position : position + max_records - len(taken)]
            self._positions[topic, partition] = position + len(part)
            taken.extend(part)
        return taken
