"""Who owns an entity's rows: the claims that one process has laid, and the ids of a batch.

Knows the keys that hold claims and the cache's turns. Does not know rows nor scripts: every
writer that is not the owner ends the claim in the step in which it writes (`features.online.compare_and_set`,
`features.feast.online_store`), and so does another claim.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.online.connection import Connection
from features.online.feast_keys import GENERATION
from features.online.optimistic_transaction import Watch
from features.online.row_cache import RowCache
from features.rows.byte_slices import Spans, given, readable_bytes
from features.store import EntityName

TOKEN_BYTES = 8


class Claim(NamedTuple):
    token: bytes
    since: int  # the cache's turn: rows put earlier may have been written by others


class Claims:
    """This process's claims that it believes to stand; the store alone knows. One thread at a
    time for an entity."""

    def __init__(self, connection: Connection, meta: bytes, cache: RowCache) -> None:
        self._connection, self._meta, self._cache = connection, meta, cache
        self._held: dict[EntityName, Claim] = {}
        self._watches: dict[EntityName, Watch] = {}

    def lay(self, entity: EntityName, key: bytes, generation: int) -> None:
        """Makes this process the owner, if it keeps rows and is not the owner yet."""
        if not self._cache.limit or entity in self._held:
            return
        token = secrets.token_bytes(TOKEN_BYTES)
        if entity not in self._watches:
            fact = (self._meta, GENERATION)
            self._watches[entity] = Watch(self._connection, key, fact)
        if self._watches[entity].begin(token, b"%d" % generation):
            self._held[entity] = Claim(token, self._cache.turn(entity))

    def held(self, entity: EntityName) -> Claim | None:
        return self._held.get(entity)

    def write(self, entity: EntityName, sets: Iterable[tuple[int, memoryview]]) -> int:
        """How many of the rows, from the first on, are written: all unless the claim is lost.
        `sets`: some rows each, and their commands."""
        written = 0
        for rows, commands in sets:
            if entity not in self._held or not self._watches[entity].write(rows, commands):
                self.lose(entity)
                break
            written += rows
            if not self._watches[entity].stands:
                self.lose(entity)
        return written

    def lose(self, entity: EntityName) -> None:
        self._held.pop(entity, None)


class Ids(NamedTuple):
    """A batch's ids."""

    ids: Spans
    keys: np.ndarray  # uint64 [N]: where the row cache looks for them
    checks: np.ndarray  # uint64 [N]: what it knows them by; Python's hash, keyed anew each process

    @classmethod
    def of(cls, names: pa.StringArray) -> Ids:
        from features.kernels.packing import hashes

        ids = Spans.of_array(names)
        keys = np.asarray(hashes(readable_bytes(ids.data), given(ids.offsets)))
        checks = np.fromiter(map(hash, names.to_pylist()), np.int64, len(names))
        return cls(ids, keys, checks.view(np.uint64))

    def text(self, places: np.ndarray) -> list[str]:
        return [raw.decode() for raw in self.ids.take(places).to_list()]
