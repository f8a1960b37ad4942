"""What a broker lost of a committed transaction, written again.

Knows trails, what is readable of them, and the order in which a new life mends. Does not
know what a message holds: the loop makes them again from the same input.

A broker that is killed between a transaction's decision and its last marker may come back
without having written the rest of the markers (ADR 0018): some partitions show the
transaction, in others it stays open, and the writer's next marker there decides over it.
So a life begins by deciding: everything that is open is aborted, and then what the commit's
trail names and nobody can read is made and written again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from streams.bus import Bus, BusError, Consumed, Outgoing, Producer, Record
from streams.loop import Input
from streams.trail import Step, Target

_OPEN_S = 15.0  # a transaction of another writer's ends within its own limit, which is less
_LOG = logging.getLogger(__name__)


class Redo:
    """Mends what one transactional loop wrote. Not thread-safe; it belongs to the loop."""

    def __init__(
        self,
        bus: Bus,
        source: Input,
        producer: Producer,
        topics: Sequence[str],
        make: Callable[[Sequence[Record]], list[Outgoing]],
    ) -> None:
        """`topics`: all that the loop writes to. `make`: its messages for these records."""
        self._bus, self._source, self._producer = bus, source, producer
        self._topics, self._make = topics, make
        self._generation = 0

    def refresh(self) -> None:
        """Looks again whenever partitions moved; the first time it also aborts what is open.

        Raises:
            BusError: another writer's transaction keeps the end of a target from being read.
        """
        if self._source.generation == self._generation:
            return
        consumer = self._source.consumer
        if not self._generation:
            counts = {topic: len(self._bus.ends(topic, uncommitted=True)) for topic in self._topics}
            targets = [(topic, p) for topic, count in counts.items() for p in range(count)]
            self._producer.settle(targets, consumer)
        trails = consumer.trails()
        lost = self._lost(
            {(t, step.last) for trail in trails.values() for t, step in trail.items()}
        )
        for place, trail in trails.items():
            if steps := {t: step for t, step in trail.items() if (t, step.last) in lost}:
                self._again(place, steps)
        self._generation = self._source.generation

    def _lost(self, named: set[tuple[Target, int]]) -> set[tuple[Target, int]]:
        """Those of the named offsets at which there was a message that nobody is shown."""
        lost: set[tuple[Target, int]] = set()
        for topic in {topic for (topic, _), _ in named}:
            last = {(p, offset) for (name, p), offset in named if name == topic}
            for partition, offset in last & self._decided(topic, last):
                if not any(True for _ in self._bus.scan(topic, partition, offset, offset + 1)):
                    lost.add(((topic, partition), offset))
        return lost

    def _decided(self, topic: str, last: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Those (partition, offset) that lie in the topic as it is now, once all can be read."""
        deadline = time.monotonic() + _OPEN_S
        whole = self._bus.ends(topic, uncommitted=True)
        ours = {(p, at) for p, at in last if p in whole and whole[p][0] <= at < whole[p][1]}
        while still := self._open(topic, ours):
            if time.monotonic() > deadline:
                raise BusError(
                    f"{topic}/{still[0]} cannot be read to where this loop wrote: a transaction is "
                    "open there, of a writer that must come back, or be aborted by hand "
                    "(kafka-transactions.sh abort)"
                )
            time.sleep(0.2)
        return ours

    def _open(self, topic: str, ours: set[tuple[int, int]]) -> list[int]:
        ends = self._bus.ends(topic) if ours else {}
        return [partition for partition, offset in ours if offset >= ends[partition][1]]

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
            out = [m for m in self._make(records) if (m.topic, m.partition) in wanted]
            consumer.forget(place, wanted)
            self._producer.send(out, consumed=Consumed(consumer, records, {place: done}))
