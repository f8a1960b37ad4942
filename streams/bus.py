"""The bus contract: records in, records out. Kafka and memory implement it alike.

Knows records, offsets, groups and commits. Does not know what the bytes mean.
`streams.kafka_bus` is the real one, `streams.memory_bus` ships as the fake for
users' own tests; one contract suite runs against both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streams.topics import TopicSpec

_TAIL = 64  # offsets at a partition's end among which its last record is looked for first


class Record(NamedTuple):
    """One message as it lies in a partition. A tuple, because a poll makes thousands."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp_ms: int = 0

    def header(self, name: str) -> bytes | None:
        for stated, value in self.headers:
            if stated == name:
                return value
        return None


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """Where a batch lies: what makes a second fold, append or join of it a no-op."""

    epoch: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to write. `partition=None` lets the client choose by key."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)


class Producer(Protocol):
    def send(self, messages: Sequence[Outgoing], *, consumed: Consumed | None = None) -> None:
        """Writes all or raises `BusError`; returns when the broker has acknowledged them.

        `consumed` marks the input as done: in one transaction with the messages when
        the producer has a transactional id, otherwise after all of them are written.
        """

    def close(self) -> None: ...


class Consumer(Protocol):
    """Reads committed records only. Offsets move only by `commit`."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Up to `max_records` records, in offset order within each partition; [] on timeout."""

    def commit(self, records: Sequence[Record]) -> None:
        """Marks these records, and all before them in their partitions, as done."""

    def seek(self, topic: str, partition: int, offset: int) -> None: ...

    def lag(self) -> int:
        """Records between this consumer's position and the ends of its partitions."""

    def assignment(self) -> frozenset[tuple[str, int]]:
        """(topic, partition) of all that this consumer is to read now."""

    def committed(self) -> dict[tuple[str, int], int]:
        """The group's next offset in each partition of the assignment that has a commit."""

    def generation(self) -> int:
        """Changes whenever partitions were given to or taken from this consumer."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Consumed:
    """Input that a loop has worked off: whose it was, and which records."""

    consumer: Consumer
    records: Sequence[Record]


class Bus(Protocol):
    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Creates what is missing; a topic with another partition count raises `BusError`."""

    def epoch(self, topic: str) -> str:
        """Changes whenever the topic's offsets start again (Kafka's topic id)."""

    def ends(self, topic: str) -> dict[int, tuple[int, int]]:
        """Per partition: the first offset kept and the one after the last committed record."""

    def scan(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        """The committed records with start <= offset < stop, without any group.

        Raises `BusError` when the broker stops answering before `stop` is reached.
        """

    def producer(self, transactional_id: str | None = None, *, timeout_s: float = 30.0) -> Producer:
        """A writer; `timeout_s` is how long a write may take before it has failed (a
        transactional one has the transaction's own limit)."""
        ...

    def consumer(self, topics: Sequence[str], group: str, *, from_start: bool = True) -> Consumer:
        """A member of `group`. With `from_start=False` and no commit yet, it reads what is
        written after this call returns."""

    def healthy(self, timeout_s: float = 1.0) -> bool: ...


class BusError(RuntimeError):
    """The broker refused or did not answer; the message says what to do."""


def next_offsets(records: Sequence[Record]) -> dict[tuple[str, int], int]:
    """(topic, partition) -> the offset after the last of `records` there."""
    done: dict[tuple[str, int], int] = {}
    for record in records:
        place, offset = (record[0], record[1]), record[2]
        if offset >= done.get(place, 0):
            done[place] = offset + 1
    return done


def last_records(bus: Bus, topic: str) -> dict[int, int]:
    """The offset of each partition's last committed record; no entry where there is none.

    A partition may end with a transaction's marks, which are no records.
    """
    found: dict[int, int] = {}
    for partition, (first, end) in bus.ends(topic).items():
        tail, start = _TAIL, end
        while start > first and partition not in found:
            start, tail = max(first, end - tail), tail * 16
            for record in bus.scan(topic, partition, start, end):
                found[partition] = record.offset
    return found


def partition_mismatch(spec: TopicSpec, found: int) -> str:
    """The error's words, the same for every bus."""
    return (
        f"topic {spec.name!r} has {found} partitions, the settings say {spec.partitions}: set "
        f"broker.partitions to {found}, or delete the topic (its events then have a new epoch)"
    )
