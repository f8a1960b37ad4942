"""Where a rebuild from the log ended, so that live folds count exactly what lies beyond.

Knows source offsets and user partitions. Does not know stores.

The log is `events.by_user`; video, author and query rows are folded live from topics of
their own, whose offsets say nothing about the log. But every event carries its place in
`behaviour`, and within one user partition the events of one source partition keep their
order on every topic (the door is ordered per partition). So one source
offset per (user partition, source partition) says exactly what the log held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import orjson

from features.rows.aggregate import Batch
from features.store import EntityName
from streams.bus.contract import Stamp
from streams.contract.topics import partition_of


@dataclass(frozen=True)
class Cut:
    """`offsets`: (user partition, source partition) -> last source offset in the rebuild.

    It holds for live deliveries of `epochs` alone (entity -> epoch of its topic): after a
    broker starts again, its offsets mean something else. An empty cut covers nothing.
    """

    partitions: int = 1
    epochs: Mapping[EntityName, str] = field(default_factory=dict)
    offsets: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def beyond(self, entity: EntityName, batch: Batch, stamp: Stamp) -> Batch:
        """The batch without the events that the rebuild has counted."""
        if not self.offsets or self.epochs.get(entity) != stamp.epoch:
            return batch
        offset = batch.table.column("source_offset").to_numpy()
        maybe = offset <= max(self.offsets.values())
        if not maybe.any():
            return batch
        return batch.where(~(maybe & (offset <= self._limits(batch))))

    def _limits(self, batch: Batch) -> np.ndarray:
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
        body = {"partitions": self.partitions, "epochs": dict(self.epochs), "offsets": offsets}
        return orjson.dumps(body)

    @classmethod
    def from_json(cls, raw: bytes | None) -> Cut:
        if raw is None:
            return cls()
        body = orjson.loads(raw)
        offsets = {(u, s): offset for u, s, offset in body["offsets"]}
        return cls(body["partitions"], body["epochs"], offsets)
