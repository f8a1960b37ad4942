"""The feature store contract: batches of events in, columns of finalized features out.

Knows entities, ids, stamps and columns. Does not know Redis or Feast
(`features.online.redis_store`) or how a feature is computed (`features.rows.aggregate`).
`features.memory_store` ships as the fake; one contract suite runs against both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from streams.bus.contract import Stamp

EntityName = str
"""user, video, author, query, or the name of an owner's entity."""


class Status(IntEnum):
    """How a reader should treat one row."""

    ABSENT = 0  # never seen, or erased: cold start
    PRESENT = 1
    EXPIRED = 2  # older than the view's TTL: values are returned, but cold start applies


@dataclass(frozen=True)
class FeatureFrame:
    """N rows of finalized features, in the order of the requested ids.

    `columns` maps every name in `features.definitions.DEFINITIONS[entity].columns` to an array
    of length N: int64 for counts and sums; object for last-n lists, each element a list of str
    (event times: a list of int, ms), newest first; float64 for ratios, NaN where they are null.
    Absent rows hold zeros, nulls and empty lists; their `last_event_ms` is 0.
    """

    entity: EntityName
    ids: tuple[str, ...]
    status: np.ndarray  # uint8 [N], Status
    last_event_ms: np.ndarray  # int64 [N], event time of the newest folded event, ms
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


def plain_values(column: np.ndarray) -> list[Any]:
    """A frame's column as Python values; a null (NaN) is None."""
    values: list[Any] = column.tolist()
    if column.dtype == np.float64 and np.isnan(column).any():
        return [None if math.isnan(value) else value for value in values]
    return values


class FeatureStore(Protocol):
    """Rows per entity, updated by folds and finalized when they are read."""

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        """Folds one partition's batch (`EVENT_SCHEMA`) into the rows of its entities.

        Idempotent: a batch at or before a row's stamp changes nothing. With a column
        `streams.bus.delivery.MESSAGE_OFFSET` this holds for each event, however messages were
        combined; with MESSAGE_PARTITION it holds for several partitions at once. Events marked
        duplicate are not counted. Returns the number of rows written.

        Raises:
            StoreDown: the store does not answer; the caller retries or stops.
            DefinitionChanged, RebuildIdChanged: the caller must not fold into these rows.
        """

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        """Features at `now_ms`. Raises `StoreDown` when the store does not answer."""

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        """Replaces the user's row by a tombstone that later folds respect.

        Events up to event time `at_ms` are never folded again; None: no event ever is. Erasing
        again up to the same or an earlier time changes nothing.
        """

    def healthy(self) -> bool: ...


class StoreDown(RuntimeError):
    """The online store did not answer in time."""


class DefinitionChanged(RuntimeError):
    """The stored rows follow other declarations; the message names the migration."""


class RebuildIdChanged(RuntimeError):
    """The store was emptied or rebuilt; the fold must restart from its topics' start."""
