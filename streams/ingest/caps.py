"""What one user may contribute: signals that count once for an item, and actions a minute.

Knows rows of EVENT_SCHEMA. Does not know brokers, nor which events were seen before
(`streams.ingest.deduplication`, which marks what these rules cap as duplicates, so that no reader of
`events.by_user` counts it: feature rows, popularity, co-engagement, feedback and trainings).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from streams.contract.clock import MINUTE_MS
from streams.contract.declaration import contract

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
DELIBERATE = ("like", "follow", "share", "cart", "order")
"""What a person does one at a time; plays, skips and exposures follow a feed that scrolls."""
_KEPT_MINUTES = 10


def rows_of_kinds(table: pa.Table, kinds: Sequence[str]) -> Ints:
    """int64, ascending: the rows of these kinds that name an item."""
    numbers = contract().signals.number
    wanted = pa.array([numbers[kind] for kind in kinds], pa.uint8())
    found = pc.and_(pc.is_in(table["kind"], value_set=wanted), pc.is_valid(table["video_id"]))
    return np.flatnonzero(found.to_numpy())


def item_keys(table: pa.Table, rows: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """uint64 [len(rows)]: one key for each (user_id, kind, video_id)."""
    named = table.select(["user_id", "kind", "video_id"]).take(pa.array(rows))
    return pl.DataFrame(named).hash_rows(seed=seed).to_numpy()


class ActionRate:
    """Counts each user's deliberate actions by minute of event time, in memory only.

    A restart begins to count anew. Replayed history is not counted: its minutes are the data's.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[int, Counter[str]] = {}

    def excess(self, table: pa.Table, counted: Bools) -> Ints:
        """int64: rows beyond the limit. counted: bool [N], rows that are no duplicates."""
        rows = rows_of_kinds(table, DELIBERATE)
        times, arrived = table["event_time_ms"].to_numpy(), table["ingested_at_ms"].to_numpy()
        rows = rows[counted[rows] & (times[rows] != arrived[rows])]
        users = table["user_id"].take(pa.array(rows)).to_pylist()
        minutes = (times[rows] // MINUTE_MS).tolist()
        beyond = []
        for row, user_id, minute in zip(rows.tolist(), users, minutes, strict=True):
            counts = self._counts.setdefault(minute, Counter())
            counts[user_id] += 1
            if counts[user_id] > self._most:
                beyond.append(row)
        for minute in sorted(self._counts)[:-_KEPT_MINUTES]:
            del self._counts[minute]
        return np.array(beyond, np.int64)
