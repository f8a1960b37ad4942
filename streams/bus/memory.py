"""The bus in memory: partitions, groups and commits without a broker.

Knows everything that `streams.bus.contract` promises, within one process and for as long as it
lives. Ships so that users can test their own code; the contract suite holds it to what
Kafka does. Writes are atomic, so there is nothing uncommitted to read.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from streams.bus.commit_metadata import Trail
from streams.bus.contract import (
    BusError,
    Consumed,
    Consumer,
    Outgoing,
    Polled,
    Record,
    next_offsets,
    partition_mismatch,
)
from streams.contract.topics import TopicSpec


@dataclass
class _Topic:
    epoch: str
    partitions: list[list[Record]]


@dataclass
class _Group:
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    members: list[MemoryConsumer] = field(default_factory=list)


class MemoryBus:
    """Implements `streams.bus.contract.Bus`. Safe to share between threads."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._changed = threading.Condition(threading.RLock())
        self._turn = itertools.count()

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        with self._changed:
            for spec in specs:
                topic = self._topics.get(spec.name)
                if topic is None:
                    epoch = uuid.uuid4().hex
                    self._topics[spec.name] = _Topic(epoch, [[] for _ in range(spec.partitions)])
                elif len(topic.partitions) != spec.partitions:
                    raise BusError(partition_mismatch(spec, len(topic.partitions)))

    def epochs(self, topics: Collection[str]) -> dict[str, str]:
        return {topic: self.epoch(topic) for topic in topics}

    def epoch(self, topic: str) -> str:
        with self._changed:
            return self._topic(topic).epoch

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
        del transactional_id, timeout_s  # every write here is atomic, and done at once
        return MemoryProducer(self)

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        gather_s: float = 0.0,
    ) -> MemoryConsumer:
        del gather_s  # an answer costs nothing here
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
        """Forgets every record and commit, as a broker that keeps nothing does: new epochs."""
        with self._changed:
            for topic in self._topics.values():
                topic.epoch = uuid.uuid4().hex
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
                owner = members[partition % len(members)]
                place = (topic, partition)
                start = group.offsets.get(place, 0 if owner.from_start else len(rows))
                owner._positions[place] = start

    def _write(self, messages: Sequence[Outgoing], consumed: Consumed | None) -> None:
        stamp = time.time_ns() // 1_000_000
        with self._changed:
            places = [(m, *self._place(m)) for m in messages]
            if consumed is not None:
                consumed.consumer.commit(consumed.records)
            for message, partition, rows in places:
                headers = tuple(message.headers.items())
                at = (message.topic, partition, len(rows))
                rows.append(Record(*at, message.key, message.value, headers, stamp))
            self._changed.notify_all()

    def _place(self, message: Outgoing) -> tuple[int, list[Record]]:
        partitions = self._topic(message.topic).partitions
        partition = message.partition
        if partition is None:
            turn = next(self._turn) if message.key is None else zlib.crc32(message.key)
            partition = turn % len(partitions)
        if not 0 <= partition < len(partitions):
            raise BusError(f"{message.topic!r} has no partition {partition}")
        return partition, partitions[partition]


class MemoryProducer:
    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus

    def send(self, messages: Sequence[Outgoing], *, consumed: Consumed | None = None) -> None:
        self._bus._write(messages, consumed)

    def settle(self, targets: Sequence[tuple[str, int]], consumer: Consumer) -> None:
        """Nothing is ever left open."""

    def close(self) -> None:
        """Nothing is held."""


class MemoryConsumer:
    def __init__(
        self, bus: MemoryBus, group: _Group, topics: tuple[str, ...], from_start: bool
    ) -> None:
        self._bus, self._group = bus, group
        self.topics, self.from_start = topics, from_start
        self._positions: dict[tuple[str, int], int] = {}
        self._generation = 0

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
            lost = [place for place in done if place not in self._positions]
            if lost:
                raise BusError(f"{lost[0]} belongs to another member now: read it again there")
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

    def assignment(self) -> frozenset[tuple[str, int]]:
        with self._bus._changed:
            return frozenset(self._positions)

    def committed(self) -> dict[tuple[str, int], int]:
        with self._bus._changed:
            offsets = self._group.offsets
            return {place: offsets[place] for place in self._positions if place in offsets}

    def trails(self) -> dict[tuple[str, int], Trail]:
        return {}  # nothing is ever lost

    def forget(self, place: tuple[str, int], targets: Collection[tuple[str, int]]) -> None:
        """There is no trail."""

    def generation(self) -> int:
        return self._generation

    def close(self) -> None:
        with self._bus._changed:
            if self in self._group.members:
                self._group.members.remove(self)
                self._positions = {}
                self._bus._rebalance(self._group)

    def _assign(self, positions: dict[tuple[str, int], int]) -> None:
        self._positions = positions
        self._generation += 1

    def _take(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        for (topic, partition), position in self._positions.items():
            rows = self._bus._topic(topic).partitions[partition]
            part = rows[position : position + max_records - len(taken)]
            self._positions[topic, partition] = position + len(part)
            taken.extend(part)
        return taken
