"""The online store: one hash per entity row in Feast's format, in Redis or Valkey.

Knows the store contract and which part serves it: `RowReader` reads, `RowWriter` writes,
`RebuildState` guards the rebuild id. Does not know Redis commands, and does not import Feast:
plain Feast clients read the same keys through `features.feast.online_store`. One database
serves one project.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from features.definitions import DEFINITIONS
from features.online.compare_and_set import CompareAndSet
from features.online.connection import OPEN, Connection, StoreLogin
from features.online.rebuild import RebuildState
from features.online.rebuild_cutoff import RebuildCutoff
from features.online.row_cache import EntityIds, RowCache
from features.online.row_reader import RowReader, batched
from features.online.row_writer import ATTEMPTS, RowWriter
from features.rows.aggregate import group_by_entity, split_by_partition
from features.rows.byte_slices import ByteSlices
from features.rows.decode import FOREVER_MS, decode, digests, erased_until, tombstone
from features.rows.finalize import finalize_rows
from features.store import EntityName, FeatureFrame, StoreDown
from streams.bus.contract import Stamp

_SCAN_ROWS = 128  # rows looked at or deleted together
_NO_TIME = np.zeros(1, np.int64)


class FeastFeatureStore:
    """`features.store.FeatureStore` on Redis or Valkey, in Feast's key and field format.

    `cached_rows`: how many rows a folding process keeps, so that the next batch need not read
    them; readers need none. Every method raises `StoreDown` if the store does not answer.
    """

    def __init__(
        self,
        address: str,
        db: int,
        project: str = "tidemill",
        *,
        timeout_s: float = 1.0,
        cached_rows: int = 0,
        login: StoreLogin = OPEN,
    ) -> None:
        self.project = project
        self.connection = Connection(address, db, timeout_s, login)
        self._reader = RowReader(self.connection, project)
        self._cache = RowCache(cached_rows)
        self._rebuild = RebuildState(self._reader, self._cache)
        self.writer = RowWriter(self._reader, self._rebuild, self._cache)

    # ---- the contract

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        self._rebuild.rebuild_id()  # loads the cutoff
        batch = group_by_entity(DEFINITIONS[entity], events)
        if len(parts := split_by_partition(events, batch)) > 1:
            return sum(self.fold(entity, part, stamp) for part in parts)
        batch = self._rebuild.cutoff.exclude_rebuilt(entity, batch, stamp)
        return self.writer.fold(entity, batch, stamp)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        return finalize_rows(DEFINITIONS[entity], ids, self.stored_rows(entity, ids), now_ms)

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        until = FOREVER_MS if at_ms is None else at_ms
        self._rebuild.rebuild_id()
        for _ in range(ATTEMPTS):
            (stored,), rebuild_id = self._reader.read("user", [user_id])
            if rebuild_id is None:
                raise self._rebuild.changed(None)
            if erased_until(stored) >= until:
                return
            # The id in the store counts: a process from before a rebuild must still erase.
            row = tombstone(until, rebuild_id, DEFINITIONS["user"].fingerprint)
            if self._replace_user(user_id, stored, row, rebuild_id):
                return
        raise StoreDown(f"user {user_id!r} is being folded without pause; erase again")

    def healthy(self) -> bool:
        return self.connection.ping()

    def _replace_user(
        self, user_id: str, stored: bytes | None, row: bytes, rebuild_id: int
    ) -> bool:
        """Whether the user's row was still `stored` and is now `row`."""
        ids = EntityIds.of(pa.array([user_id]))
        expected = digests(ByteSlices.from_list([stored])).view(np.uint64)[:, 0]
        packer = CompareAndSet(self._reader.formats["user"], self._reader.metadata_key, rebuild_id)
        rows = ByteSlices.from_list([row])
        lost, _ = self.writer.compare_and_set(packer, ids.ids, expected, rows, _NO_TIME)
        if not lost:
            self._cache.drop("user", ids.keys)
        return not lost

    # ---- rows as bytes

    def stored_rows(self, entity: EntityName, ids: Sequence[str]) -> list[bytes | None]:
        """Rows as they are stored, in the order of `ids`; None where there is none."""
        return self._reader.read(entity, ids)[0]

    def ids(self, entity: EntityName) -> Iterator[str]:
        """Every id that has a row, tombstones included, unordered; some may come twice."""
        return self._reader.ids(entity)

    def sweep(self, entity: EntityName) -> int:
        """Deletes rows that the last rebuild has not replaced, except erasures.

        Returns how many. A row that a live fold replaces meanwhile stays.
        """
        swept = 0
        for ids in batched(self.ids(entity), _SCAN_ROWS):
            rows = self.stored_rows(entity, ids)
            head = decode(rows).head
            stale = (head["rebuild_id"] != self.rebuild_id()) & (head["erased_ms"] == 0)
            found = [p for p in np.flatnonzero(stale).tolist() if rows[p] is not None]
            if found:
                part = [ids[p] for p in found], [rows[p] for p in found]
                swept += self.writer.delete_unchanged(entity, *part)
        return swept

    def tear_down(self) -> int:
        """Deletes this project's rows and metadata, of no other project; returns the row count."""
        deleted = 0
        for entity, layout in self._reader.formats.items():
            for ids in batched(self.ids(entity), _SCAN_ROWS):
                with self.connection.errors_as_store_down():
                    deleted += self.connection.client.unlink(*map(layout.key, ids))
        self._rebuild.delete()
        return deleted

    # ---- rebuilds (see `RebuildState`)

    def rebuild_id(self) -> int:
        """The id that this process folds under. Raises `DefinitionChanged` when the stored rows
        follow other declarations."""
        return self._rebuild.rebuild_id()

    def stored_rebuild_id(self) -> int | None:
        """The id in the store now; None for an empty (or flushed) store."""
        return self._rebuild.stored_rebuild_id()

    def watch_rebuild_id(self, stop: threading.Event, every_s: float = 1.0) -> None:
        """Returns at `stop`. Raises `RebuildIdChanged` when the store was emptied or rebuilt,
        which must be detected even while nothing is folded."""
        self._rebuild.watch(stop, every_s)

    def matches_definitions(self) -> bool:
        """Whether the stored rows were folded by the declarations of this code."""
        return self._rebuild.matches_definitions()

    def begin_rebuild(self, cutoff: RebuildCutoff) -> int:
        """Starts a rebuild and returns its id: only folds under it may write from now on."""
        return self._rebuild.begin(cutoff)

    def put_metadata(self, name: str, value: bytes | None) -> None:
        """Stores a small value beside the rebuild id; None deletes it."""
        self._rebuild.put_metadata(name, value)

    def get_metadata(self, name: str) -> bytes | None:
        return self._rebuild.get_metadata(name)
