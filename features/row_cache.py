"""The rows that one folding process wrote last, so that the next batch need not read them.

Knows ids and bytes. Does not decide anything: a stale row loses its compare-and-set.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

from features.store import EntityName


class RowCache:
    """The `limit` most recently written rows per process. Safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: OrderedDict[tuple[EntityName, str], bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, entity: EntityName, ids: Sequence[str]) -> dict[str, bytes | None]:
        """The cached rows among these ids."""
        if not self._limit:
            return {}
        with self._lock:
            found = ((i, self._rows.get((entity, i))) for i in ids)
            return {entity_id: blob for entity_id, blob in found if blob is not None}

    def put(self, entity: EntityName, rows: Mapping[str, bytes]) -> None:
        if not self._limit:
            return
        with self._lock:
            for entity_id, blob in rows.items():
                self._rows[entity, entity_id] = blob
                self._rows.move_to_end((entity, entity_id))
            while len(self._rows) > self._limit:
                self._rows.popitem(last=False)

    def drop(self, entity: EntityName, ids: Sequence[str]) -> None:
        with self._lock:
            for entity_id in ids:
                self._rows.pop((entity, entity_id), None)

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()
