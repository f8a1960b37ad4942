"""The rebuild id: which fill of the online store the rows belong to, and who may write them.

Knows the project's metadata hash. Does not know rows.

A new rebuild id is drawn when the store is found empty and when a rebuild starts. Every row
carries it, and a fold writes only under the id with which it started. A flushed, failed-over
or rebuilt store is therefore detected at the next batch (`RebuildIdChanged`) and never stays
half filled.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from typing import Any

import orjson

from features.definitions import DEFINITIONS
from features.kernels.layout import VERSION
from features.online.connection import Connection
from features.online.rebuild_cutoff import RebuildCutoff
from features.online.row_cache import RowCache
from features.online.row_reader import RowReader
from features.store import DefinitionChanged, RebuildIdChanged, StoreDown

# Stored spellings of the metadata hash's fields.
_REBUILD_ID, _FINGERPRINTS, _CUTOFF = "generation", "fingerprints", "cut"


class RebuildState:
    """A project's rebuild id, fingerprints and cutoff, and what this process knows of them.

    `cache` holds rows of the current id; a change clears it.
    """

    def __init__(self, reader: RowReader, cache: RowCache) -> None:
        self._connection: Connection = reader.connection
        self._key, self._lease_keys = reader.metadata_key, reader.lease_keys()
        self._cache = cache
        self._rebuild_id = 0
        self.cutoff = RebuildCutoff()

    def rebuild_id(self) -> int:
        """The id that this process folds under; draws one if the store has none.

        Raises:
            DefinitionChanged: the stored rows follow other declarations.
            StoreDown: the store does not answer.
        """
        if self._rebuild_id:
            return self._rebuild_id
        fields = [_REBUILD_ID, _FINGERPRINTS, _CUTOFF]
        with self._connection.errors_as_store_down():
            client = self._connection.client
            client.hsetnx(self._key, _REBUILD_ID, _new_rebuild_id())
            client.hsetnx(self._key, _FINGERPRINTS, _fingerprints())
            stored, fingerprints, cutoff = client.hmget(self._key, fields)
        if fingerprints != _fingerprints():
            raise DefinitionChanged(
                "the stored rows follow other feature declarations than this code; run "
                "`tidemill features backfill --rebuild` to fold the log by these"
            )
        self.cutoff = RebuildCutoff.from_json(cutoff)
        self._rebuild_id = int(stored)
        return self._rebuild_id

    def stored_rebuild_id(self) -> int | None:
        """The id in the store now; None for an empty (or flushed) store."""
        stored = self.get_metadata(_REBUILD_ID)
        return None if stored is None else int(stored)

    def watch(self, stop: threading.Event, every_s: float) -> None:
        """Polls the stored id every `every_s` seconds until `stop` is set.

        Raises `RebuildIdChanged` when it is not this process's id any more.
        """
        while not stop.wait(every_s):
            with suppress(StoreDown):
                if (stored := self.stored_rebuild_id()) != self.rebuild_id():
                    raise self.changed(stored)

    def matches_definitions(self) -> bool:
        """Whether the stored rows were folded by the declarations of this code."""
        return self.get_metadata(_FINGERPRINTS) == _fingerprints()

    def begin(self, cutoff: RebuildCutoff) -> int:
        """Starts a rebuild: from now on only folds under the returned id may write.

        Rows of the old id stay readable until they are replaced or swept.
        """
        rebuild_id = int(_new_rebuild_id())
        fields: dict[str, Any] = {_FINGERPRINTS: _fingerprints(), _CUTOFF: cutoff.to_json()}
        fields[_REBUILD_ID] = rebuild_id
        client = self._connection.client
        with self._connection.errors_as_store_down(), client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key, mapping=fields).unlink(*self._lease_keys).execute()
        self._cache.clear()
        self._rebuild_id, self.cutoff = rebuild_id, cutoff
        return rebuild_id

    def delete(self) -> None:
        """Deletes the metadata and the leases; the next call draws a new id."""
        with self._connection.errors_as_store_down():
            self._connection.client.unlink(self._key, *self._lease_keys)
        self._cache.clear()
        self._rebuild_id = 0

    def put_metadata(self, name: str, value: bytes | None) -> None:
        """Stores a small value beside the rebuild id; None deletes it."""
        with self._connection.errors_as_store_down():
            client = self._connection.client
            if value is None:
                client.hdel(self._key, name)
            else:
                client.hset(self._key, name, value)

    def get_metadata(self, name: str) -> bytes | None:
        with self._connection.errors_as_store_down():
            value: bytes | None = self._connection.client.hget(self._key, name)
        return value

    def changed(self, stored: int | None) -> RebuildIdChanged:
        """The error to raise when the store holds `stored` instead of this process's id."""
        self._cache.clear()
        what = "was emptied" if stored is None else "is being rebuilt"
        return RebuildIdChanged(
            f"the online store at {self._connection.address} {what} while this process folded "
            f"under rebuild id {self._rebuild_id:08x}: restart the fold from the topics' start"
        )


def _new_rebuild_id() -> str:
    return str(secrets.randbits(31) + 1)


def _fingerprints() -> bytes:
    """What stored rows follow: every declaration, and the layout of a row's bytes."""
    declared = {name: d.fingerprint for name, d in sorted(DEFINITIONS.items())}
    return orjson.dumps(declared | {"row": VERSION})
