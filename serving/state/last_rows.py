"""The last feature row read for each recent user, served while the store does not answer.

Knows user rows. Does not know stages or requests; items' last rows are in
`serving.state.popularity`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from features.store import FeatureFrame


class LastUserRows:
    """Bounded to `limit` users; the least recently read user is evicted first. Thread safe."""

    def __init__(self, limit: int = 10_000) -> None:
        self._rows: OrderedDict[str, FeatureFrame] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def keep(self, frame: FeatureFrame) -> None:
        """Stores a frame of one row under its user id."""
        with self._lock:
            self._rows[frame.ids[0]] = frame
            self._rows.move_to_end(frame.ids[0])
            while len(self._rows) > self._limit:
                self._rows.popitem(last=False)

    def get(self, user_id: str) -> FeatureFrame | None:
        with self._lock:
            return self._rows.get(user_id)

    def forget(self, user_id: str) -> None:
        with self._lock:
            self._rows.pop(user_id, None)
