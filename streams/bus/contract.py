"""The bus contract: records in, records out. Kafka and memory implement it alike.

Knows records, offsets, groups and commits. Does not know what the bytes mean.
`streams.bus.kafka.bus` is the real one, `streams.bus.memory` ships as the fake for
users' own tests; one contract suite runs against both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
import numpy.typing as npt

from streams.bus.commit_metadata import Trail
from streams.contract.topics import TopicSpec

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


class Fields(NamedTuple):
    """How a client's own messages are read: each field of one, and the record it is."""

    topic: Callable[[Any], str]
    partition: Callable[[Any], int]
    offset: Callable[[Any], int]
    value: Callable[[Any], bytes | None]
    headers: Callable[[Any], object]
    record: Callable[[Any], Record]


_OF_RECORDS = Fields(
    itemgetter(0), itemgetter(1), itemgetter(2), itemgetter(4), itemgetter(5), lambda record: record
)


class Polled(Sequence[Record]):
    """One poll. A `Record` is made where one is looked at; whoever wants all of the thousands
    of them takes columns, which cost a tenth."""

    def __init__(
        self,
        messages: Iterable[Any] = (),
        fields: Fields = _OF_RECORDS,
        topic: str | None = None,
    ) -> None:
        """`topic`: the one that all are from, given where offsets ascend in each partition."""
        self._messages, self._fields, self._topic = list(messages), fields, topic

    @cached_property
    def topics(self) -> list[str]:
        if self._topic is not None:
            return [self._topic] * len(self)
        return list(map(self._fields.topic, self._messages))

    @property
    def distinct_topics(self) -> set[str]:
        return set(self.topics if self._topic is None else self.topics[:1])

    @cached_property
    def partitions(self) -> npt.NDArray[np.int32]:
        return np.fromiter(map(self._fields.partition, self._messages), np.int32, len(self))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        if self._topic is None:
            return np.fromiter(map(self._fields.offset, self._messages), np.int64, len(self))
        found = np.empty(len(self), np.int64)
        for partition in np.flatnonzero(np.bincount(self.partitions)).tolist():
            rows = np.flatnonzero(self.partitions == partition)
            found[rows] = self._ascending(rows)
        return found

    def _ascending(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The offsets of one partition's rows: where none is missing, two of them tell all."""
        offset, messages = self._fields.offset, self._messages
        first, last = offset(messages[rows[0]]), offset(messages[rows[-1]])
        if last - first == len(rows) - 1:
            return np.arange(first, last + 1)
        return np.fromiter((offset(messages[row]) for row in rows.tolist()), np.int64, len(rows))

    @cached_property
    def values(self) -> list[bytes | None]:
        return list(map(self._fields.value, self._messages))

    @cached_property
    def any_headers(self) -> bool:
        return any(map(self._fields.headers, self._messages))

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Polled: ...
    def __getitem__(self, place: int | slice) -> Record | Polled:
        if isinstance(place, slice):
            return Polled(self._messages[place], self._fields)
        return self._fields.record(self._messages[place])

    def __iter__(self) -> Iterator[Record]:
        return map(self._fields.record, self._messages)

    def __add__(self, more: Sequence[Record]) -> Polled:
        if isinstance(more, Polled) and more._fields is self._fields:
            return Polled(self._messages + more._messages, self._fields)
        return Polled([*self, *more])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def polled(records: Sequence[Record]) -> Polled:
    """The same records, in columns where a column is asked for."""
    return records if isinstance(records, Polled) else Polled(records)


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """Where a batch lies: what makes a second fold, append or join of it a no-op."""

    epoch: str
    partition: int
    offset: int


class Outgoing(NamedTuple):
    """One message to write. `partition=None` lets the client choose by key."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int | None = None
    headers: Mapping[str, bytes] = MappingProxyType({})


class Producer(Protocol):
    def send(self, messages: Sequence[Outgoing], *, consumed: Consumed | None = None) -> None:
        """Writes all or raises `BusError`; returns when the broker has acknowledged them.

        `consumed` marks the input as done: in one transaction with the messages when
        the producer has a transactional id, otherwise after all of them are written.
        """

    def settle(self, targets: Sequence[tuple[str, int]], consumer: Consumer) -> None:
        """Aborts whatever a broker has left open of this writer's in these (topic, partition)s
        and in the commits of `consumer`; nothing, where there are no transactions."""

    def close(self) -> None: ...


class Consumer(Protocol):
    """Reads committed records only. Offsets move only by `commit`."""

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        """Up to `max_records` records, in offset order within each partition; none on timeout."""

    def commit(self, records: Sequence[Record]) -> None:
        """Marks these records, and all before them in their partitions, as done."""

    def seek(self, topic: str, partition: int, offset: int) -> None: ...

    def lag(self) -> int:
        """Records between this consumer's position and the ends of its partitions."""

    def assignment(self) -> frozenset[tuple[str, int]]:
        """(topic, partition) of all that this consumer is to read now."""

    def committed(self) -> dict[tuple[str, int], int]:
        """The group's next offset in each partition of the assignment that has a commit."""

    def trails(self) -> dict[tuple[str, int], Trail]:
        """What the commit of each partition of the assignment says of its transaction."""

    def forget(self, place: tuple[str, int], targets: Collection[tuple[str, int]]) -> None:
        """Takes targets out of the trail of an input partition, from its next commit on."""

    def generation(self) -> int:
        """Changes whenever partitions were given to or taken from this consumer."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Consumed:
    """Input that a loop has worked off: whose it was, and which records.

    `until`: the offsets to mark as done, where they are not those after the records.
    """

    consumer: Consumer
    records: Sequence[Record]
    until: Mapping[tuple[str, int], int] | None = None


class Bus(Protocol):
    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Creates what is missing; a topic with another partition count raises `BusError`."""

    def epoch(self, topic: str) -> str:
        """Changes whenever the topic's offsets start again (Kafka's topic id)."""

    def epochs(self, topics: Collection[str]) -> dict[str, str]:
        """Each topic's epoch, by one question."""

    def partitions(self, topic: str) -> int:
        """How many it has."""

    def ends(self, topic: str, *, uncommitted: bool = False) -> dict[int, tuple[int, int]]:
        """Per partition: the first offset kept and the one after the last committed record, or
        after the last of all."""

    def scan(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        """The committed records with start <= offset < stop, without any group.

        Raises `BusError` when the broker stops answering before `stop` is reached.
        """

    def producer(self, transactional_id: str | None = None, *, timeout_s: float = 30.0) -> Producer:
        """A writer; `timeout_s` is how long a write may take before it has failed (a
        transactional one has the transaction's own limit)."""
        ...

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        gather_s: float = 0.0,
    ) -> Consumer:
        """A member of `group`. With `from_start=False` and no commit yet, it reads what is
        written after this call returns. For whoever is in no haste: the broker may hold
        records back for `gather_s`, so that few answers carry much."""

    def healthy(self, timeout_s: float = 1.0) -> bool: ...


class BusError(RuntimeError):
    """The broker refused or did not answer; the message says what to do."""


def next_offsets(records: Sequence[Record]) -> dict[tuple[str, int], int]:
    """(topic, partition) -> the offset after the last of `records` there."""
    return {
        (topic, partition): last + 1
        for topic, partitions, offsets in _by_topic(records)
        for partition, last in last_places(partitions, offsets).items()
    }


def first_offsets(records: Sequence[Record]) -> dict[tuple[str, int], int]:
    """(topic, partition) -> the offset of the first of `records` there."""
    return {
        (topic, partition): int(offsets[partitions == partition].min())
        for topic, partitions, offsets in _by_topic(records)
        for partition in np.flatnonzero(np.bincount(partitions)).tolist()
    }


def _by_topic(
    records: Sequence[Record],
) -> Iterator[tuple[str, npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
    """Each topic with the partitions and offsets of its records."""
    poll = polled(records)
    topics = sorted(poll.distinct_topics)
    for topic in topics:
        own = np.array([t == topic for t in poll.topics]) if len(topics) > 1 else slice(None)
        yield topic, poll.partitions[own], poll.offsets[own]


def last_places(
    partitions: npt.NDArray[np.integer[Any]], places: npt.NDArray[np.int64]
) -> dict[int, int]:
    """The greatest place (at least 0) in each partition, by partition."""
    last = np.full(int(partitions.max(initial=-1)) + 1, -1, np.int64)
    np.maximum.at(last, partitions, places)
    return {p: int(last[p]) for p in np.flatnonzero(last >= 0).tolist()}


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
