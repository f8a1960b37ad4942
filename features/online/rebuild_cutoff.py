"""How far a rebuild read the log, so that live folds count exactly the events after it.

Knows source offsets and user partitions. Does not know stores.

The log holds `events.by_user`. Item, author and query rows are folded live from topics of
their own, whose offsets say nothing about the log. But every event carries its partition and
offset in `behaviour`, and ingest keeps the order of each source partition: within one user
partition, the events of one source partition have the same order on every topic. One source
offset per (user partition, source partition) therefore says exactly what the log held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import orjson

from features.rows.aggregate import EventBatch
from features.store import EntityName
from streams.bus.contract import Stamp
from streams.contract.topics import partition_of


@dataclass(frozen=True)
class RebuildCutoff:
    """`offsets`: (user partition, source partition) -> last source offset in the rebuild.

    It holds only for live deliveries of `topic_ids` (entity -> id of its topic): offsets of a
    recreated topic mean something else. An empty cutoff excludes nothing.
    """

    partitions: int = 1
    topic_ids: Mapping[EntityName, str] = field(default_factory=dict)
    offsets: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def exclude_rebuilt(self, entity: EntityName, batch: EventBatch, stamp: Stamp) -> EventBatch:
        """The batch without the events that the rebuild counted."""
        if not self.offsets or self.topic_ids.get(entity) != stamp.topic_id:
            return batch
        offset = batch.table.column("source_offset").to_numpy()
        if not (offset <= max(self.offsets.values())).any():  # cheaper than looking users up
            return batch
        return batch.where(~(offset <= self._rebuilt_offsets(batch)))

    def _rebuilt_offsets(self, batch: EventBatch) -> np.ndarray:
        """int64 [M]: the last rebuilt offset of each event's partitions, -1 where none."""
        users = batch.table.column("user_id").to_pylist()
        sources = batch.table.column("source_partition").to_pylist()
        places = (
            (partition_of(user, self.partitions), source)
            for user, source in zip(users, sources, strict=True)
        )
        return np.fromiter((self.offsets.get(p, -1) for p in places), np.int64, len(users))

    def to_json(self) -> bytes:
        offsets = [[u, s, offset] for (u, s), offset in sorted(self.offsets.items())]
        body = {"partitions": self.partitions, "epochs": dict(self.topic_ids), "offsets": offsets}
        return orjson.dumps(body)

    @classmethod
    def from_json(cls, raw: bytes | None) -> RebuildCutoff:
        if raw is None:
            return cls()
        body = orjson.loads(raw)
        offsets = {(u, s): offset for u, s, offset in body["offsets"]}
        return cls(body["partitions"], body["epochs"], offsets)
