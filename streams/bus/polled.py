"""Polled records: one record, one poll in rows or columns, and the offsets they reach.

Knows positions and a client's messages. Does not know consumers or commits
(`streams.bus.contract`), nor what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from streams.bus.commit_metadata import TopicPartition


class Record(NamedTuple):
    """One message at its position in a partition. A tuple, because a poll makes thousands."""

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


class MessageGetters(NamedTuple):
    """How to read a client's own message: its fields, and the whole of it as a `Record`."""

    topic: Callable[[Any], str]
    partition: Callable[[Any], int]
    offset: Callable[[Any], int]
    value: Callable[[Any], bytes | None]
    headers: Callable[[Any], object]
    record: Callable[[Any], Record]


_RECORD_GETTERS = MessageGetters(
    itemgetter(0), itemgetter(1), itemgetter(2), itemgetter(4), itemgetter(5), lambda record: record
)


class Polled(Sequence[Record]):
    """The records of one poll.

    A `Record` is built only where one is looked at. To read them all, take the columns: they
    cost a tenth.
    """

    def __init__(
        self,
        messages: Iterable[Any] = (),
        getters: MessageGetters = _RECORD_GETTERS,
        topic: str | None = None,
    ) -> None:
        """`topic`: the topic of all messages; give it only if offsets ascend in each partition."""
        self._messages, self._getters, self._topic = list(messages), getters, topic

    @cached_property
    def topics(self) -> list[str]:
        if self._topic is not None:
            return [self._topic] * len(self)
        return list(map(self._getters.topic, self._messages))

    @property
    def distinct_topics(self) -> set[str]:
        return set(self.topics if self._topic is None else self.topics[:1])

    @cached_property
    def partitions(self) -> npt.NDArray[np.int32]:
        """int32 [N]."""
        return np.fromiter(map(self._getters.partition, self._messages), np.int32, len(self))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """int64 [N]."""
        if self._topic is None:
            return np.fromiter(map(self._getters.offset, self._messages), np.int64, len(self))
        found = np.empty(len(self), np.int64)
        for partition in np.flatnonzero(np.bincount(self.partitions)).tolist():
            rows = np.flatnonzero(self.partitions == partition)
            found[rows] = self._ascending_offsets(rows)
        return found

    def _ascending_offsets(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Offsets of one partition's rows; without a gap, the first and last imply the rest."""
        offset, messages = self._getters.offset, self._messages
        first, last = offset(messages[rows[0]]), offset(messages[rows[-1]])
        if last - first == len(rows) - 1:
            return np.arange(first, last + 1)
        return np.fromiter((offset(messages[row]) for row in rows.tolist()), np.int64, len(rows))

    @cached_property
    def values(self) -> list[bytes | None]:
        return list(map(self._getters.value, self._messages))

    @cached_property
    def any_headers(self) -> bool:
        return any(map(self._getters.headers, self._messages))

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Polled: ...
    def __getitem__(self, index: int | slice) -> Record | Polled:
        if isinstance(index, slice):
            return Polled(self._messages[index], self._getters)
        return self._getters.record(self._messages[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._getters.record, self._messages)

    def __add__(self, more: Sequence[Record]) -> Polled:
        if isinstance(more, Polled) and more._getters is self._getters:
            return Polled(self._messages + more._messages, self._getters)
        return Polled([*self, *more])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def polled(records: Sequence[Record]) -> Polled:
    """The same records as a `Polled`, which has columns."""
    return records if isinstance(records, Polled) else Polled(records)


def next_offsets(records: Sequence[Record]) -> dict[TopicPartition, int]:
    """The offset after the last of `records` in each partition."""
    return {
        (topic, partition): last + 1
        for topic, partitions, offsets in _by_topic(records)
        for partition, last in last_positions(partitions, offsets).items()
    }


def first_offsets(records: Sequence[Record]) -> dict[TopicPartition, int]:
    """The offset of the first of `records` in each partition."""
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


def last_positions(
    partitions: npt.NDArray[np.integer[Any]], positions: npt.NDArray[np.int64]
) -> dict[int, int]:
    """The greatest position (at least 0) in each partition, by partition."""
    last = np.full(int(partitions.max(initial=-1)) + 1, -1, np.int64)
    np.maximum.at(last, partitions, positions)
    return {p: int(last[p]) for p in np.flatnonzero(last >= 0).tolist()}
