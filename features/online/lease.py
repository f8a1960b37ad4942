"""Leases of entities: a process that holds one writes that entity's rows without comparing.

Knows the lease keys and the row cache's sequence numbers. Does not know rows or scripts. Every
other writer deletes the lease key in the step in which it writes
(`features.online.compare_and_set`, `features.feast.online_store`), and so does the next
process that acquires the lease (docs/adr/0012, docs/adr/0015).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import NamedTuple

from features.online.connection import Connection
from features.online.feast_keys import REBUILD_ID_FIELD
from features.online.optimistic_transaction import OptimisticTransaction
from features.online.row_cache import RowCache
from features.store import EntityName

TOKEN_BYTES = 8


class Lease(NamedTuple):
    token: bytes
    since: int  # cache sequence: rows put earlier may have been overwritten by others


class Leases:
    """The leases that this process believes it holds; the store decides. One thread at a time
    for an entity."""

    def __init__(self, connection: Connection, metadata_key: bytes, cache: RowCache) -> None:
        self._connection, self._metadata_key, self._cache = connection, metadata_key, cache
        self._held: dict[EntityName, Lease] = {}
        self._transactions: dict[EntityName, OptimisticTransaction] = {}

    def acquire(self, entity: EntityName, key: bytes, rebuild_id: int) -> None:
        """Takes the entity's lease, if this process caches rows and does not hold it yet."""
        if not self._cache.limit or entity in self._held:
            return
        token = secrets.token_bytes(TOKEN_BYTES)
        if entity not in self._transactions:
            guard = (self._metadata_key, REBUILD_ID_FIELD)
            self._transactions[entity] = OptimisticTransaction(self._connection, key, guard)
        if self._transactions[entity].begin(token, b"%d" % rebuild_id):
            self._held[entity] = Lease(token, self._cache.next_sequence(entity))

    def held(self, entity: EntityName) -> Lease | None:
        return self._held.get(entity)

    def write(self, entity: EntityName, sets: Iterable[tuple[int, memoryview]]) -> int:
        """Executes `sets` (row count, packed commands) in order until the lease is lost.

        Returns how many rows, from the first on, are written.
        """
        written = 0
        for rows, commands in sets:
            if entity not in self._held or not self._transactions[entity].execute(rows, commands):
                self.invalidate(entity)
                break
            written += rows
            if not self._transactions[entity].valid:
                self.invalidate(entity)
        return written

    def invalidate(self, entity: EntityName) -> None:
        self._held.pop(entity, None)
