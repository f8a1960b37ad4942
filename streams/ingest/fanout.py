"""The second shuffle: `events.by_user` in, the topics by video, author and query out.

Knows which column names which entity, and how often to look. Decides nothing: duplicates
are marked already (`streams.ingest.deduplication`) and left out here, so that every fold counts the
same events.

A loop of its own with a slower pace than the others: each round writes to every partition
of three topics, which costs a broker and the folds behind it much the same whether it
carries ten rows or ten thousand. A user's own rows do not wait for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from streams.bus.consume import Input
from streams.bus.contract import Bus, Consumed, Outgoing, Record
from streams.contract.schema import EVENT_SCHEMA, BatchReader, columns
from streams.contract.topics import ENTITY_TOPIC, EVENTS_BY_USER
from streams.ingest.partitioning import place
from streams.ingest.recovery import Recovery
from streams.ingest.sequencer import ROW_BITS, read_load

PACE_S, _GATHER_S = 0.5, 0.25
_COLUMN = {"video": "video_id", "author": "author_id", "query": "query"}  # of each entity
_BY_USER_ONLY = ("request_id", "impression")  # the feedback join's, which reads by user; long


def fanned_out(entities: Collection[str]) -> dict[str, str]:
    """Column -> topic, of those of `entities` that this loop writes."""
    return {column: ENTITY_TOPIC[e] for e, column in _COLUMN.items() if e in entities}


class FanOut:
    """One consume-process-produce loop. Not thread-safe; `turn` is one round of it."""

    def __init__(
        self,
        bus: Bus,
        transactional: bool = True,
        group: str = "tidemill",
        instance: str = "0",
        entities: Collection[str] = tuple(ENTITY_TOPIC),
    ) -> None:
        self._topics = fanned_out(entities)
        names = [name for name in EVENT_SCHEMA.names if name not in _BY_USER_ONLY]
        self._read = BatchReader(columns(*names))
        name = f"{group}-fanout-{instance}" if transactional else None
        self._producer = bus.producer(name)
        self._partitions = {topic: bus.partitions(topic) for topic in self._topics.values()}
        self._input = Input(bus, EVENTS_BY_USER, f"{group}-fanout", PACE_S, gather_s=_GATHER_S)
        self._recovery = Recovery(
            bus, self._input, self._producer, self._partitions, self._shuffled, ROW_BITS
        )

    def turn(self, timeout_s: float) -> int:
        """Sends on what one poll brings; returns the number of messages it worked off."""
        records = self._input.poll(timeout_s)
        self._recovery.refresh()
        if not records:
            return 0
        out = self._shuffled(records)
        self._producer.send(out, consumed=Consumed(self._input.consumer, records))
        return len(records)

    def close(self) -> None:
        self._input.consumer.close()
        self._producer.close()

    def _shuffled(self, records: Sequence[Record]) -> list[Outgoing]:
        load = read_load(records, self._input.epoch, self._read)
        load = replace(load, table=load.table.combine_chunks())  # once, not for every topic
        duplicate = load.table["duplicate"].to_numpy()
        once = np.flatnonzero(~duplicate) if duplicate.any() else None
        out: list[Outgoing] = []
        for key, topic in self._topics.items():
            count, written = self._partitions[topic], self._recovery.places
            placed = place(load, key, topic, count, written, rows=once)
            out += placed.messages()
        return out
