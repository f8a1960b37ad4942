"""The rows that one folding process wrote last, so that the next batch need not read them.

Knows ids and bytes. Does not decide anything: a stale row loses its compare-and-set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

from features.store import EntityName


class RowCache:
    """At least the `limit // 2` and at most about `limit` rows written last, per entity.

    Safe for threads. Rows age in two halves: when the young half is full it becomes the
    old one, and the old one is forgotten. So nothing is done row by row.
    """

    def __init__(self, limit: int) -> None:
        self._half = (limit + 1) // 2
        self._young: dict[EntityName, dict[str, bytes]] = {}
        self._old: dict[EntityName, dict[str, bytes]] = {}
        self._lock = Lock()

    def get(self, entity: EntityName, ids: Sequence[str]) -> list[bytes | None]:
        """The cached rows of these ids, None where there is none."""
        with self._lock:
            young, old = self._young.get(entity, {}), self._old.get(entity, {})
            found = list(map(young.get, ids))
            if old:
                return [old.get(i) if b is None else b for i, b in zip(ids, found, strict=True)]
            return found

    def put(self, entity: EntityName, rows: Mapping[str, bytes]) -> None:
        if not self._half:
            return
        with self._lock:
            young = self._young.setdefault(entity, {})
            young.update(rows)
            if len(young) >= self._half:
                self._old[entity], self._young[entity] = young, {}

    def drop(self, entity: EntityName, ids: Sequence[str]) -> None:
        with self._lock:
            for half in (self._young.get(entity, {}), self._old.get(entity, {})):
                for entity_id in ids:
                    half.pop(entity_id, None)

    def clear(self) -> None:
        with self._lock:
            self._young.clear()
            self._old.clear()
