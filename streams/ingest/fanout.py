"""The fan-out: `events.by_user` in, the topics by video, author and query out.

Knows which column identifies which entity. Decides nothing: duplicates are marked already
(`streams.ingest.deduplication`) and are left out here, so that all folds count the same events.

An owner's entity has a loop and a consumer group of its own. The group is new when the entity is
declared, so it reads `events.by_user` from its start: what the log writer has yet to write then is on
the entity's topic, as it is on those of shipped entities.

It is a loop of its own with a longer poll interval: each iteration writes to every partition of
three topics, which costs the broker and the folds about the same for ten rows as for ten
thousand. A user's own rows do not wait for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from streams.bus.consume import Input
from streams.bus.contract import Bus, Outgoing
from streams.bus.polled import Record
from streams.contract.declaration import contract
from streams.contract.schema import BatchReader, event_columns, event_schema
from streams.contract.topics import ENTITY_TOPIC, EVENTS_BY_USER, OwnEntity, entity_topic
from streams.ingest.loop import IngestConfig, IngestLoop
from streams.ingest.partitioning import partition_rows
from streams.ingest.sequencer import ROW_BITS, read_admitted

MIN_POLL_INTERVAL_S, _FETCH_MAX_WAIT_S = 0.5, 0.25
_ID_COLUMN = {"video": "video_id", "author": "author_id", "query": "query"}  # of each entity
_BY_USER_ONLY = ("request_id", "impression")  # long; only the feedback join uses them


def fanned_out(entities: Collection[str]) -> dict[str, str]:
    """Id column -> topic, of those `entities` that this loop writes."""
    return {column: ENTITY_TOPIC[e] for e, column in _ID_COLUMN.items() if e in entities}


class FanOut(IngestLoop):
    """Partitions the users' events by every other entity, without duplicates."""

    def __init__(self, bus: Bus, config: IngestConfig, own: OwnEntity | None = None) -> None:
        """`own`: partition by this entity, in place of the shipped ones."""
        self._topics = {own.column: entity_topic(own.name)} if own else fanned_out(config.entities)
        self._kinds = own.kinds if own else None
        names = [name for name in event_schema().names if name not in _BY_USER_ONLY]
        self._read = BatchReader(event_columns(*names))
        self._partitions = {topic: bus.partitions(topic) for topic in self._topics.values()}
        open_input = partial(
            Input,
            bus,
            EVENTS_BY_USER,
            min_poll_interval_s=MIN_POLL_INTERVAL_S,
            fetch_max_wait_s=_FETCH_MAX_WAIT_S,
        )
        role = f"fanout-{own.name}" if own else "fanout"
        super().__init__(bus, config, role, open_input, self._partitions, ROW_BITS)

    def _process(self, records: Sequence[Record]) -> list[Outgoing]:
        events = read_admitted(records, self._input.topic_id, self._read)
        events = replace(events, table=events.table.combine_chunks())  # once, not per topic
        left_out = events.table["duplicate"].to_numpy()
        if self._kinds is not None:
            numbers = [contract().signals.number[kind] for kind in self._kinds]
            left_out = left_out | ~np.isin(events.table["kind"].to_numpy(), numbers)
        rows = np.flatnonzero(~left_out) if left_out.any() else None
        out: list[Outgoing] = []
        for key, topic in self._topics.items():
            count, written = self._partitions[topic], self._recovery.written
            out += partition_rows(events, key, topic, count, written, rows=rows).messages()
        return out
