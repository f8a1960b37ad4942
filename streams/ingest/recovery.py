"""Recovery at the start of a loop: what an earlier process left open, uncommitted or lost.

Knows commits, their metadata and the last messages of the topics that a loop writes to. Does not
know what a message holds: the loop makes it again from the same input.

Two faults are repaired. (1) A loop that was killed between writing and committing has written
rows whose input it reads again. `written` lists them, and partitioning leaves them out
(`streams.ingest.partitioning`); this works without transactions too. (2) A broker that was killed
during a commit may have completed it in some partitions only (ADR 0018). In the others the
transaction stays open, and the writer's next marker decides its fate. On start: abort open
transactions, then rewrite what the commit metadata lists but readers cannot see.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streams.bus.commit_metadata import CommitMetadata, TopicPartition, WrittenRange
from streams.bus.consume import Input
from streams.bus.contract import Bus, BusError, Outgoing
from streams.bus.polled import Record
from streams.bus.transaction import InputTransactions
from streams.contract.topics import BEHAVIOUR_DEAD
from streams.ingest.partitioning import SourceTarget, last_written

_OPEN_TIMEOUT_S = 15.0  # another writer's transaction ends within its own limit, which is less
# How many of a partition's last offsets to read: at least those of one commit. (Each dead
# letter is a message of its own.)
_LAST_OFFSETS = 64
_LAST_OFFSETS_OF = {BEHAVIOUR_DEAD: 512}
_READERS = 8
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _PartitionEnd:
    """The readable end of a partition: its `first` offset kept, and [start, end) as read."""

    first: int
    start: int
    end: int
    records: Mapping[int, Record]  # by offset, without values


class Recovery:
    """Of one loop. Call `refresh` after every poll, before anything is written.

    Not thread-safe.
    """

    def __init__(
        self,
        bus: Bus,
        source: Input,
        transactions: InputTransactions,
        topics: Iterable[str],
        process: Callable[[Sequence[Record]], list[Outgoing]],
        row_bits: int = 0,
    ) -> None:
        """`topics`: all that the loop writes to. `process`: the loop's messages for records.
        `row_bits`: the input's offset is shifted left by this many bits to give a position."""
        self._bus, self._source, self._transactions = bus, source, transactions
        self._topics, self._process, self._row_bits = list(topics), process, row_bits
        self._assignment_version = 0
        self.written: dict[SourceTarget, int] = {}
        """The last position written and not committed; empty unless a commit was lost."""

    def refresh(self) -> None:
        """Recovers if partitions were reassigned since the last call.

        Raises:
            BusError: another writer's open transaction hides the end of a topic.
        """
        if self._source.assignment_version == self._assignment_version:
            return
        self._abort_open()
        commits = self._transactions.load_metadata()
        with ThreadPoolExecutor(_READERS) as pool:  # they mostly wait for the broker
            ends = self._read_ends(pool, list(commits.values()))
        self.written = self._uncommitted(ends)
        for source, metadata in commits.items():
            lost = {t: w for t, w in metadata.items() if self._is_lost(t, w, ends.get(t))}
            if lost:
                self._rewrite_lost(source, lost)
        self._assignment_version = self._source.assignment_version

    def _abort_open(self) -> None:
        counts = {topic: self._bus.partitions(topic) for topic in self._topics}
        targets = [(topic, p) for topic, count in counts.items() for p in range(count)]
        self._transactions.abort_open(targets)

    def _read_ends(
        self, pool: ThreadPoolExecutor, commits: Sequence[CommitMetadata]
    ) -> dict[TopicPartition, _PartitionEnd]:
        named: dict[str, set[tuple[int, int]]] = {topic: set() for topic in self._topics}
        for (topic, partition), written in (item for each in commits for item in each.items()):
            named.get(topic, set()).add((partition, written.last))
        of_topics = pool.map(self._readable_ends, named, named.values())
        ends = {
            (topic, partition): end
            for topic, own in zip(named, of_topics, strict=True)
            for partition, end in own.items()
        }
        return dict(zip(ends, pool.map(self._read_end, ends, ends.values()), strict=True))

    def _read_end(self, target: TopicPartition, ends: tuple[int, int]) -> _PartitionEnd:
        (topic, partition), (first, end) = target, ends
        start = max(first, end - _LAST_OFFSETS_OF.get(topic, _LAST_OFFSETS))
        records = self._bus.scan(topic, partition, start, end)
        without_values = {r.offset: r._replace(value=None) for r in records}
        return _PartitionEnd(first, start, end, without_values)

    def _readable_ends(
        self, topic: str, named: Collection[tuple[int, int]]
    ) -> dict[int, tuple[int, int]]:
        """The topic's ends, once every (partition, offset) in `named` can be read."""
        deadline = time.monotonic() + _OPEN_TIMEOUT_S
        while True:
            ends = self._bus.ends(topic)
            beyond = [(p, offset) for p, offset in named if p in ends and offset >= ends[p][1]]
            written = self._bus.ends(topic, uncommitted=True) if beyond else {}
            hidden = [(p, offset) for p, offset in beyond if offset < written[p][1]]
            if not hidden:
                return ends
            if time.monotonic() > deadline:
                raise BusError(
                    f"{topic}/{hidden[0][0]} cannot be read up to what this loop wrote: a "
                    "transaction is open there. Restart its writer, or abort it by hand "
                    "(kafka-transactions.sh abort)"
                )
            time.sleep(0.2)

    def _uncommitted(self, ends: Mapping[TopicPartition, _PartitionEnd]) -> dict[SourceTarget, int]:
        """The last position of each source partition in each target, if not committed."""
        committed = self._source.committed()
        records = [record for end in ends.values() for record in end.records.values()]
        return {
            target: position
            for target, position in last_written(records, self._source.topic_id).items()
            if position >= committed.get(target[2], 0) << self._row_bits
        }

    def _is_lost(
        self, target: TopicPartition, written: WrittenRange, end: _PartitionEnd | None
    ) -> bool:
        """Whether a message was written to `target` that readers cannot see.

        Not if retention removed it, nor if the topic was recreated and is shorter now.
        """
        offset = written.last
        if end is None or not end.first <= offset < end.end:
            return False
        if offset >= end.start:
            return offset not in end.records
        return not any(True for _ in self._bus.scan(*target, offset, offset + 1))

    def _rewrite_lost(
        self, source: TopicPartition, lost: Mapping[TopicPartition, WrittenRange]
    ) -> None:
        """Writes each target's last messages again; the committed offset stays as it is."""
        topic, partition = source
        committed = self._source.consumer.committed()[source]
        _LOG.warning(
            "the broker lost committed messages of %s/%d in %s: rewriting them",
            topic,
            partition,
            ", ".join(f"{t}/{p}" for t, p in lost),
        )
        for first, until in sorted({(written.first, written.until) for written in lost.values()}):
            records = list(self._bus.scan(topic, partition, first, until))
            targets = {t for t, w in lost.items() if (w.first, w.until) == (first, until)}
            # No records: retention removed the input.
            made = self._process(records) if records else []
            out = [m for m in made if (m.topic, m.partition) in targets]
            self._transactions.drop_targets(source, targets)
            self._transactions.send(out, records, {source: committed})
