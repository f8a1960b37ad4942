"""What a loop must know of its last life before it writes: what lies there, and what is lost.

Knows commits, their trails, the tails of the topics that a loop writes to, and the order in
which a new life mends. Does not know what a message holds: the loop makes it again from
the same input.

Two things may be wrong. A loop that was killed between writing and committing has rows there
whose input it will read again: `places` says which, and they are left out (`streams.ingest.partitioning`);
so a broker without transactions does. And a broker that was killed amid a commit may have
finished it in some partitions only (ADR 0018): in the others the transaction stays open, and
the writer's next marker decides over it. So a life begins by deciding: what is open is
aborted, and then what the commit's trail names and nobody is shown is written again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streams.bus.commit_metadata import Step, Target, Trail
from streams.bus.consume import Input
from streams.bus.contract import Bus, BusError, Consumed, Outgoing, Producer, Record
from streams.contract.topics import BEHAVIOUR_DEAD
from streams.ingest.partitioning import Place, written_until

_OPEN_S = 15.0  # a transaction of another writer's ends within its own limit, which is less
# How far back a partition's last round may lie. A dead letter is a message of its own.
_TAIL = 64
_TAILS = {BEHAVIOUR_DEAD: 512}
_READERS = 8
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Tail:
    """The readable end of a partition: `first` offset kept, `start` of the tail, `end`."""

    first: int
    start: int
    end: int
    records: Mapping[int, Record]  # by offset, without what they hold


class Recovery:
    """One loop's, not thread-safe. `refresh` it in every turn, before anything is written."""

    def __init__(
        self,
        bus: Bus,
        source: Input,
        producer: Producer,
        topics: Iterable[str],
        make: Callable[[Sequence[Record]], list[Outgoing]],
        row_bits: int = 0,
    ) -> None:
        """`topics`: all that the loop writes to. `make`: its messages for these records.
        `row_bits`: how far an offset of the input is shifted to the left to be a place."""
        self._bus, self._source, self._producer = bus, source, producer
        self._topics, self._make, self._row_bits = list(topics), make, row_bits
        self._generation = 0
        self.places: dict[Place, int] = {}  # empty unless a commit was lost

    def refresh(self) -> None:
        """Aborts what is open and looks again, whenever partitions moved.

        Raises:
            BusError: another writer's transaction keeps the end of a topic from being read.
        """
        if self._source.generation == self._generation:
            return
        self._settle()
        trails = self._source.consumer.trails()
        with ThreadPoolExecutor(_READERS) as pool:  # they wait for answers, nearly all the time
            tails = self._tails(pool, list(trails.values()))
        self.places = self._uncommitted(tails)
        for place, trail in trails.items():
            steps = trail.items()
            if lost := {t: step for t, step in steps if self._is_lost(t, step, tails.get(t))}:
                self._again(place, lost)
        self._generation = self._source.generation

    def _settle(self) -> None:
        counts = {topic: self._bus.partitions(topic) for topic in self._topics}
        targets = [(topic, p) for topic, count in counts.items() for p in range(count)]
        self._producer.settle(targets, self._source.consumer)

    def _tails(self, pool: ThreadPoolExecutor, trails: Sequence[Trail]) -> dict[Target, _Tail]:
        named: dict[str, set[tuple[int, int]]] = {topic: set() for topic in self._topics}
        for (topic, partition), step in (item for trail in trails for item in trail.items()):
            named.get(topic, set()).add((partition, step.last))
        ends = pool.map(self._readable, named, named.values())
        spans = {
            (t, p): span for t, own in zip(named, ends, strict=True) for p, span in own.items()
        }
        tails = pool.map(self._tail, spans, spans.values())
        return dict(zip(spans, tails, strict=True))

    def _tail(self, target: Target, span: tuple[int, int]) -> _Tail:
        (topic, partition), (first, end) = target, span
        start = max(first, end - _TAILS.get(topic, _TAIL))
        records = self._bus.scan(topic, partition, start, end)
        return _Tail(first, start, end, {r.offset: r._replace(value=None) for r in records})

    def _readable(self, topic: str, named: set[tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """The topic's ends, once the (partition, offset)s that are named can be read."""
        deadline = time.monotonic() + _OPEN_S
        while True:
            ends = self._bus.ends(topic)
            beyond = [(p, offset) for p, offset in named if p in ends and offset >= ends[p][1]]
            whole = self._bus.ends(topic, uncommitted=True) if beyond else {}
            still = [(p, offset) for p, offset in beyond if offset < whole[p][1]]
            if not still:
                return ends
            if time.monotonic() > deadline:
                raise BusError(
                    f"{topic}/{still[0][0]} cannot be read to where this loop wrote: a transaction "
                    "is open there, of a writer that must come back, or be aborted by hand "
                    "(kafka-transactions.sh abort)"
                )
            time.sleep(0.2)

    def _uncommitted(self, tails: Mapping[Target, _Tail]) -> dict[Place, int]:
        """The last place of each source partition in each target, where it is not committed."""
        done = self._source.committed()
        records = [record for tail in tails.values() for record in tail.records.values()]
        return {
            at: place
            for at, place in written_until(records, self._source.epoch).items()
            if place >= done.get(at[2], 0) << self._row_bits
        }

    def _is_lost(self, target: Target, step: Step, tail: _Tail | None) -> bool:
        """Whether a message was written there that nobody is shown.

        Not where its time has passed, nor where the topic began again and is shorter now.
        """
        offset = step.last
        if tail is None or not tail.first <= offset < tail.end:
            return False
        if offset >= tail.start:
            return offset not in tail.records
        return not any(True for _ in self._bus.scan(*target, offset, offset + 1))

    def _again(self, place: Target, lost: Mapping[Target, Step]) -> None:
        """Each target's last round, in one transaction with the commit as it stands."""
        topic, partition = place
        consumer = self._source.consumer
        done = consumer.committed()[place]
        _LOG.warning(
            "the broker lost what %s/%d was committed with in %s: writing it again",
            topic, partition, ", ".join(f"{t}/{p}" for t, p in lost),
        )  # fmt: skip
        for first, until in sorted({(step.first, step.until) for step in lost.values()}):
            records = list(self._bus.scan(topic, partition, first, until))
            wanted = {t for t, step in lost.items() if (step.first, step.until) == (first, until)}
            made = self._make(records) if records else []  # none: its time has passed
            out = [m for m in made if (m.topic, m.partition) in wanted]
            consumer.forget(place, wanted)
            self._producer.send(out, consumed=Consumed(consumer, records, {place: done}))
