"""The feature store contract: folded rows in, columns of finished features out.

Knows entities, ids, stamps and columns. Does not know Redis or Feast
(`features.online.redis_store`) nor how a feature is computed (`features.rows.aggregate`).
`features.memory_store` ships as the fake; one contract suite runs against both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from streams.bus.contract import Stamp

EntityName = Literal["user", "video", "author", "query"]


class Status(IntEnum):
    """What a reader may believe of one row."""

    ABSENT = 0  # the entity was never seen (or was erased): cold start
    PRESENT = 1
    EXPIRED = 2  # older than the view's TTL: values are given, but cold start applies


@dataclass(frozen=True)
class FeatureFrame:
    """N rows of finished features, in the order of the ids that were asked for.

    `columns` maps every name in `features.definitions.DEFINITIONS[entity].columns` to
    an array of length N: int64 for counts and sums; object for last-n, each element a
    list of str (event times: a list of int), newest first.
    Absent rows hold zeros and empty lists. `last_event_ms` is 0 where absent.
    """

    entity: EntityName
    ids: tuple[str, ...]
    status: np.ndarray  # uint8 [N], Status
    last_event_ms: np.ndarray  # int64 [N], event time of the newest folded event
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


class FeatureStore(Protocol):
    """Rows per entity, folded by compare-and-set, finished when they are read."""

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        """Folds one partition's batch (`EVENT_SCHEMA`) into the rows of its entities.

        Idempotent: a batch at or before a row's stamp changes nothing. With a column
        `streams.bus.delivery.MESSAGE_OFFSET` this holds event by event, whatever messages
        were combined, and with MESSAGE_PARTITION for several partitions at once. Rows marked duplicate are not counted. Returns the number of rows written.
        Raises `StoreDown` when the store does not answer; the caller retries or stops.
        """

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        """Finished features at `now_ms`. Raises `StoreDown` when the store does not answer."""

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        """Removes the user's row and leaves a tombstone that later folds respect.

        Events up to event time `at_ms` are never folded again; None: no event ever is.
        Erasing again up to the same time, or an earlier one, changes nothing.
        """

    def healthy(self) -> bool: ...


class StoreDown(RuntimeError):
    """The online store did not answer in time."""


class DefinitionChanged(RuntimeError):
    """Stored rows were folded by other declarations; the message names the migration."""


class GenerationChanged(RuntimeError):
    """The store was emptied or rebuilt under a fold, which must start again from the start."""
