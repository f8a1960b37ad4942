"""The last feature row read for each recent user, served while the store does not answer.

Knows user rows. Does not know stages or requests; items' last rows are in
`serving.state.popularity`.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from features.store import EntityName, FeatureFrame


class LastUserRows:
    """Bounded to `limit` users; the least recently read user is evicted first. Thread safe."""

    def __init__(self, limit: int = 10_000) -> None:
        self._rows: OrderedDict[str, _Row] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def keep(self, frame: FeatureFrame) -> None:
        """Stores a frame of one row under its user id."""
        row = _Row.of(frame)
        with self._lock:
            self._rows[row.user_id] = row
            self._rows.move_to_end(row.user_id)
            while len(self._rows) > self._limit:
                self._rows.popitem(last=False)

    def get(self, user_id: str) -> FeatureFrame | None:
        with self._lock:
            row = self._rows.get(user_id)
        return row.frame() if row else None

    def forget(self, user_id: str) -> None:
        with self._lock:
            self._rows.pop(user_id, None)


@dataclass(frozen=True, slots=True)
class _Row:
    """A frame of one row in a fraction of its 27 kB: a gateway keeps one for each user it answered.

    columns: name and dtype of each, shared by all rows of one layout. numbers: the values of all
    number columns as bytes, 8 each. lists: their texts are interned, since users share items.
    """

    entity: EntityName
    user_id: str
    status: np.ndarray
    last_event_ms: np.ndarray
    columns: tuple[tuple[str, np.dtype[Any]], ...]
    numbers: bytes
    lists: tuple[tuple[Any, ...], ...]

    @staticmethod
    def of(frame: FeatureFrame) -> _Row:
        columns = tuple((name, column.dtype) for name, column in frame.columns.items())
        values = frame.columns.values()
        numbers = b"".join(column.tobytes() for column in values if column.dtype != object)
        lists = tuple(tuple(map(_shared, c[0])) for c in values if c.dtype == object)
        row = (frame.ids[0], frame.status, frame.last_event_ms, _layout(columns), numbers, lists)
        return _Row(frame.entity, *row)

    def frame(self) -> FeatureFrame:
        columns: dict[str, np.ndarray] = {}
        at, lists = 0, iter(self.lists)
        for name, dtype in self.columns:
            if dtype.hasobject:
                columns[name] = np.empty(1, object)
                columns[name][0] = list(next(lists))
            else:
                columns[name] = np.frombuffer(self.numbers, dtype, 1, at)
                at += dtype.itemsize
        return FeatureFrame(self.entity, (self.user_id,), self.status, self.last_event_ms, columns)


@lru_cache(maxsize=16)
def _layout(
    columns: tuple[tuple[str, np.dtype[Any]], ...],
) -> tuple[tuple[str, np.dtype[Any]], ...]:
    """One object for equal layouts."""
    return columns


def _shared(value: Any) -> Any:
    return sys.intern(value) if isinstance(value, str) else value
