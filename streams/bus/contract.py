"""The bus contract: records in, records out. Kafka and memory implement it alike.

Knows records, offsets, groups and commits. Does not know what the bytes mean.
`streams.bus.kafka.bus` is the real one, `streams.bus.memory` ships as the fake for
users' own tests; one contract suite runs against both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

from streams.bus.commit_metadata import CommitMetadata, TopicPartition, with_written
from streams.bus.polled import Polled, Record, first_offsets, next_offsets
from streams.contract.topics import TopicSpec

MAX_MESSAGE_BYTES = 1_000_000  # key, value and headers; brokers take 1,048,588 by default
_LAST_OFFSETS = 64  # at a partition's end, searched for its last record first


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """A batch's position. It makes a second fold, append or join of the batch a no-op.

    `topic_id`: Kafka's topic id, or whatever else changes when the topic is recreated.
    """

    topic_id: str
    partition: int
    offset: int


class Outgoing(NamedTuple):
    """One message to write. `partition=None` lets the client choose by key."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    headers: Mapping[str, bytes] = MappingProxyType({})


def message_bytes(message: Outgoing) -> int:
    """The size that a bus compares with its limit: key, value and headers."""
    headers = sum(len(name) + len(value or b"") for name, value in message.headers.items())
    return len(message.key or b"") + len(message.value or b"") + headers


class Producer(Protocol):
    def send(
        self, messages: Sequence[Outgoing], *, consumed: Consumed | None = None
    ) -> Mapping[TopicPartition, CommitMetadata]:
        """Writes all or raises `BusError`; returns when the broker has acknowledged them.

        Raises `MessagesRejected` if the broker refuses some of them for good. Without a
        transactional id the others are written then, and `consumed` is not committed.

        `consumed` is committed: in one transaction with the messages if the producer has a
        transactional id, otherwise after all of them are written. Returns the metadata that was
        committed with each input partition, {} without a transaction.
        """
        ...

    def abort_open(self, targets: Sequence[TopicPartition], consumer: Consumer) -> None:
        """Aborts transactions of this transactional id that a broker left open in `targets` and
        in the commits of `consumer`. Does nothing without transactions."""

    def close(self) -> None: ...


class Consumer(Protocol):
    """Reads committed records only. Offsets move only by `commit`."""

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        """Up to `max_records` records, in offset order within each partition; none on timeout."""

    def commit(self, records: Sequence[Record]) -> None:
        """Marks these records, and all before them in their partitions, as processed."""

    def seek(self, topic: str, partition: int, offset: int) -> None: ...

    def lag(self) -> int:
        """Records between this consumer's position and the ends of its partitions.

        As far as the last polls know: it asks nothing of the broker.
        """

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions assigned to this consumer now."""

    def committed(self) -> dict[TopicPartition, int]:
        """The group's next offset in each assigned partition that has a commit."""

    def commit_metadata(self) -> dict[TopicPartition, CommitMetadata]:
        """The metadata beside the commit of each assigned partition that has one."""

    def assignment_version(self) -> int:
        """0 before the first assignment; changes whenever partitions are assigned or revoked."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Consumed:
    """Input to commit: who read it, which records, and the metadata of the last commits.

    `until`: the offsets to commit, if they are not those after the records.
    """

    consumer: Consumer
    records: Sequence[Record]
    until: Mapping[TopicPartition, int] | None = None
    metadata: Mapping[TopicPartition, CommitMetadata] = field(default_factory=dict)

    def next_offsets(self) -> Mapping[TopicPartition, int]:
        """The offsets to commit."""
        return self.until or next_offsets(self.records)

    def metadata_after(
        self, written: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, CommitMetadata]:
        """The metadata to commit when the last message at each target is at `written`."""
        until = next_offsets(self.records)
        unchanged = {source: self.metadata.get(source, {}) for source in self.until or {}}
        return unchanged | {
            source: with_written(self.metadata.get(source, {}), written, first, until[source])
            for source, first in first_offsets(self.records).items()
        }


class Bus(Protocol):
    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Creates missing topics; one with another partition count raises `BusError`."""

    def topic_id(self, topic: str) -> str:
        """Kafka's topic id: it changes when the topic is recreated and its offsets restart."""

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        """Each topic's id, in one request."""

    def partitions(self, topic: str) -> int:
        """The topic's partition count."""

    def ends(self, topic: str, *, uncommitted: bool = False) -> dict[int, tuple[int, int]]:
        """Per partition: the first offset kept, and the offset after the last committed record
        (or after the last of all)."""

    def scan(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        """The committed records with start <= offset < stop, without any group.

        Raises `BusError` when the broker stops answering before `stop` is reached.
        """

    def producer(self, transactional_id: str | None = None, *, timeout_s: float = 30.0) -> Producer:
        """`timeout_s`: how long a write may take; with a transactional id the transaction's own
        limit applies."""
        ...

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        fetch_max_wait_s: float = 0.0,
    ) -> Consumer:
        """A member of `group`.

        `from_start=False`: without a commit yet, it reads what is written after this call
        returns. `fetch_max_wait_s`: the broker may delay records by this much, so that few
        responses carry many.
        """

    def healthy(self, timeout_s: float = 1.0) -> bool: ...


class BusError(RuntimeError):
    """The broker refused or did not answer; the message says what to do."""


class MessagesRejected(BusError):
    """Messages that the broker will never take, such as those above its size limit.

    `reasons`: index of the message in what was sent -> why it is rejected.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__("; ".join(dict.fromkeys(reasons.values())))
        self.reasons = dict(reasons)


def too_large(size: int, limit: int) -> str:
    """The reason to reject a message of `size` bytes, the same for every bus."""
    return f"the message has {size} bytes, the topic takes {limit}"


def last_record_offsets(bus: Bus, topic: str) -> dict[int, int]:
    """The offset of each partition's last committed record; no entry for an empty partition.

    A partition may end with transaction markers, which are not records.
    """
    found: dict[int, int] = {}
    for partition, (first, end) in bus.ends(topic).items():
        size, start = _LAST_OFFSETS, end
        while start > first and partition not in found:
            start, size = max(first, end - size), size * 16
            for record in bus.scan(topic, partition, start, end):
                found[partition] = record.offset
    return found


def partition_mismatch(spec: TopicSpec, found: int) -> str:
    """The error message, the same for every bus."""
    return (
        f"topic {spec.name!r} has {found} partitions, the settings say {spec.partitions}: set "
        f"broker.partitions to {found}, or delete the topic (it is recreated with a new topic id)"
    )
