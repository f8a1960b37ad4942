"""The online store: one hash per entity row in Feast's format, folded by compare-and-set.

Knows Redis commands, generations and conflicts. Does not import Feast: plain Feast
clients read the same keys through `features.online_store`. One database serves one
project.

A generation is one life of the stored rows. It is drawn anew when the store is found
empty and when a rebuild begins, it is written into every row, and no fold may write
under another than the one that it started with: so a flushed, failed-over or rebuilt
store is noticed at the next batch (`GenerationChanged`), never silently half filled.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import orjson
import pyarrow as pa

from features.connection import Connection, Script, bulk
from features.cut import Cut
from features.definitions import DEFINITIONS
from features.feast_format import RowFormat, unwrap
from features.finish import finish_blobs
from features.fold import Batch, Folded, fold, group
from features.row_cache import RowCache
from features.store import (
    DefinitionChanged,
    EntityName,
    FeatureFrame,
    GenerationChanged,
    StoreDown,
)
from features.swap import DROP, SWAP, Swap
from features.tiles import (
    FOREVER_MS,
    Rows,
    decode,
    digest,
    encode,
    erased_until,
    tombstone,
)
from streams.bus import Stamp

ATTEMPTS = 32  # a conflict means that another writer moved on; it cannot lose 32 times alone
SCRIPT_ROWS = 256  # rows per script call: bounds how long the server is busy with one
BYTES_AT_ONCE = 16 << 20  # of rows folded together: bounds memory, whatever the batch
ROWS_AT_ONCE = range(512, 8_192)  # fewer cost more than they save, more leave the caches
FIRST_GUESS_BYTES = 4_096  # of a row, before any was folded
CALLS_AT_ONCE = 16  # calls packed and sent before their replies are read: bounds memory
T = TypeVar("T")


class FeastFeatureStore:
    """`features.store.FeatureStore` on Redis or Valkey, in Feast's key and field format.

    `cached_rows`: how many rows a folding process keeps, to save reading them again; a
    reader needs none. Every method raises `StoreDown` when the store does not answer.
    """

    def __init__(
        self,
        address: str,
        db: int,
        project: str = "tidemill",
        *,
        timeout_s: float = 1.0,
        cached_rows: int = 0,
    ) -> None:
        self.project = project
        self.connection = Connection(address, db, timeout_s)
        self._formats = {name: RowFormat(d, project) for name, d in DEFINITIONS.items()}
        self._meta = f"tidemill:{project}".encode()
        self._swap_script = Script(self.connection, SWAP)
        self._drop_script = Script(self.connection, DROP)
        self._cache = RowCache(cached_rows)
        self._row_bytes = dict.fromkeys(DEFINITIONS, float(FIRST_GUESS_BYTES))
        self._generation = 0
        self._cut = Cut()

    # ---- the contract

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        generation = self.generation()
        batch = self._cut.beyond(entity, group(DEFINITIONS[entity], events), stamp)
        parts = _parts(batch, self._rows_at_once(entity))
        return sum(self._fold_part(entity, part, stamp, generation) for part in parts)

    def _rows_at_once(self, entity: EntityName) -> int:
        rows = int(BYTES_AT_ONCE / self._row_bytes[entity])
        return min(max(rows, ROWS_AT_ONCE.start), ROWS_AT_ONCE.stop)

    def _fold_part(self, entity: EntityName, batch: Batch, stamp: Stamp, generation: int) -> int:
        written = 0
        for _ in range(ATTEMPTS):
            stored = self._stored(entity, batch.ids, generation)
            rows = decode(stored)
            self._refuse_foreign(entity, rows)
            folded = fold(DEFINITIONS[entity], rows, batch, stamp, generation)
            lost = self._swap(entity, batch.ids, stored, folded, generation)
            written += len(folded.changed) - len(lost)
            if not lost:
                return written
            batch = _only(batch, lost)
        raise StoreDown(f"{len(batch.ids)} {entity} rows lost every compare-and-set; fold again")

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        blobs, _ = self._fetch(entity, ids)
        return finish_blobs(DEFINITIONS[entity], ids, blobs, now_ms)

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        until = FOREVER_MS if at_ms is None else at_ms
        self.generation()
        for _ in range(ATTEMPTS):
            blobs, generation = self._fetch("user", [user_id])
            if generation is None:
                raise self._changed(None)
            if erased_until(blobs[0]) >= until:
                return
            blob = tombstone(until, generation, DEFINITIONS["user"].fingerprint)
            if not self._swap_rows("user", [user_id], blobs, [blob], [0], generation):
                self._cache.drop("user", [user_id])
                return
        raise StoreDown(f"user {user_id!r} is being folded without pause; erase again")

    def healthy(self) -> bool:
        return self.connection.ping()

    # ---- rows as bytes

    def blobs(self, entity: EntityName, ids: Sequence[str]) -> list[bytes | None]:
        """Stored rows as they lie, in the order of `ids`."""
        return self._fetch(entity, ids)[0]

    def ids(self, entity: EntityName) -> Iterator[str]:
        """Every id that has a row, tombstones included, in no order; some may come twice."""
        layout = self._formats[entity]
        with self.connection.failures():
            for key in self.connection.client.scan_iter(layout.pattern(), count=1000):
                entity_id = layout.entity_id(key)
                if entity_id is not None:
                    yield entity_id

    # ---- generations

    def generation(self) -> int:
        """The generation that this process folds under; draws one if the store has none.

        Raises `DefinitionChanged` when the stored rows follow other declarations.
        """
        if self._generation:
            return self._generation
        with self.connection.failures():
            client = self.connection.client
            client.hsetnx(self._meta, "generation", _new_generation())
            client.hsetnx(self._meta, "fingerprints", _fingerprints())
            stored, fingerprints, cut = client.hmget(
                self._meta, ["generation", "fingerprints", "cut"]
            )
        if fingerprints != _fingerprints():
            raise DefinitionChanged(
                "the stored rows follow other feature declarations than this code; run "
                "`tidemill features backfill --rebuild` to fold the log by these"
            )
        self._cut = Cut.from_json(cut)
        self._generation = int(stored)
        return self._generation

    def stored_generation(self) -> int | None:
        """The generation in the store now; None for an empty (or flushed) one."""
        with self.connection.failures():
            stored = self.connection.client.hget(self._meta, "generation")
        return None if stored is None else int(stored)

    def await_change(self, stop: threading.Event, every_s: float = 1.0) -> None:
        """Returns at `stop`; an emptied store must be noticed also while nothing is folded.

        Raises `GenerationChanged` when the store is not of this process's generation any more.
        """
        while not stop.wait(every_s):
            with suppress(StoreDown):
                if (stored := self.stored_generation()) != self.generation():
                    raise self._changed(stored)

    def follows_declarations(self) -> bool:
        """Whether the stored rows were folded by the declarations of this code."""
        with self.connection.failures():
            stored = self.connection.client.hget(self._meta, "fingerprints")
        return bool(stored == _fingerprints())

    def begin_generation(self, cut: Cut) -> int:
        """Starts a rebuild: from now on only folds of the new generation may write.

        Rows of the old one stay readable until they are replaced or swept.
        """
        generation = int(_new_generation())
        fields = {"fingerprints": _fingerprints(), "cut": cut.to_json(), "generation": generation}
        with self.connection.failures():
            self.connection.client.hset(self._meta, mapping=fields)
        self._cache.clear()
        self._generation, self._cut = generation, cut
        return generation

    def note(self, name: str, value: bytes | None) -> None:
        """Keeps (or with None forgets) a small fact beside the generation."""
        with self.connection.failures():
            client = self.connection.client
            if value is None:
                client.hdel(self._meta, name)
            else:
                client.hset(self._meta, name, value)

    def noted(self, name: str) -> bytes | None:
        with self.connection.failures():
            value: bytes | None = self.connection.client.hget(self._meta, name)
        return value

    def sweep(self, entity: EntityName) -> int:
        """Deletes rows that no rebuild has brought into this generation; erasures stay.

        A row that a live fold brings into it meanwhile stays too.
        """
        swept, layout = 0, self._formats[entity]
        for ids in _chunks(self.ids(entity), SCRIPT_ROWS):
            blobs = self.blobs(entity, ids)
            head = decode(blobs).head
            old = (head["generation"] != self.generation()) & (head["erased_ms"] == 0)
            found = [(ids[p], b) for p in np.flatnonzero(old) if (b := blobs[p]) is not None]
            if found:
                keys = [layout.key(entity_id) for entity_id, _ in found]
                swept += self._drop_script(keys, [layout.row_field, *(digest(b) for _, b in found)])
        return swept

    def tear_down(self) -> int:
        """Deletes this project's rows and facts, and nothing of any other project."""
        deleted = 0
        for entity, layout in self._formats.items():
            for ids in _chunks(self.ids(entity), SCRIPT_ROWS):
                with self.connection.failures():
                    deleted += self.connection.client.unlink(*map(layout.key, ids))
        with self.connection.failures():
            self.connection.client.unlink(self._meta)
        self._cache.clear()
        self._generation = 0
        return deleted

    # ---- one batch

    def _stored(
        self, entity: EntityName, ids: Sequence[str], generation: int
    ) -> list[bytes | None]:
        """Rows of the batch's ids: cached where they can be, else read."""
        rows = self._cache.get(entity, ids)
        missing = (place for place, blob in enumerate(rows) if blob is None)
        for places in _chunks(missing, SCRIPT_ROWS * 4):
            blobs, stored = self._fetch(entity, [ids[place] for place in places])
            if stored != generation:
                raise self._changed(stored)
            for place, blob in zip(places, blobs, strict=True):
                rows[place] = blob
        return rows

    def _fetch(
        self, entity: EntityName, ids: Sequence[str]
    ) -> tuple[list[bytes | None], int | None]:
        layout = self._formats[entity]
        places = [(layout.packed_key(entity_id), layout.row_field) for entity_id in ids]
        fact = (bulk(self._meta), b"generation")
        generation, *values = self.connection.hget_many([fact, *places])
        return [unwrap(v) for v in values], None if generation is None else int(generation)

    def _swap(
        self,
        entity: EntityName,
        ids: Sequence[str],
        stored: Sequence[bytes | None],
        folded: Folded,
        generation: int,
    ) -> list[int]:
        """Writes the changed rows whose stored bytes are still those read; the rest's places."""
        places = folded.changed.tolist()
        blobs = encode(folded.rows)
        if blobs:
            self._row_bytes[entity] = sum(map(len, blobs)) / len(blobs)
        times = folded.rows.head["last_event_ms"].tolist()
        changed, before = [ids[p] for p in places], [stored[p] for p in places]
        lost = self._swap_rows(entity, changed, before, blobs, times, generation)
        kept = dict(zip(changed, blobs, strict=True))
        gone = [places[row] for row in lost]
        self._cache.put(entity, kept)
        self._cache.drop(entity, [ids[place] for place in gone])
        return gone

    def _swap_rows(
        self,
        entity: EntityName,
        ids: Sequence[str],
        before: Sequence[bytes | None],
        blobs: Sequence[bytes],
        times: Sequence[int],
        generation: int,
    ) -> list[int]:
        """Compare-and-set of each row; the places of those that lost, ascending."""
        swap = Swap(self._formats[entity], self._meta, generation)
        lost: list[int] = []
        for starts in _chunks(range(0, len(ids), SCRIPT_ROWS), CALLS_AT_ONCE):
            spans = [slice(start, start + SCRIPT_ROWS) for start in starts]
            calls = [swap.call(ids[s], before[s], blobs[s], times[s]) for s in spans]
            replies = self._swap_script.many(calls)
            if [-1] in replies:
                raise self._changed(self.stored_generation())
            for start, reply in zip(starts, replies, strict=True):
                lost += [start + row for row in reply]
        return lost

    def _changed(self, stored: int | None) -> GenerationChanged:
        self._cache.clear()
        what = "was emptied" if stored is None else "is being rebuilt"
        return GenerationChanged(
            f"the online store at {self.connection.address} {what} while this process folded "
            f"generation {self._generation:08x}: start the fold again, from the topics' start"
        )

    def _refuse_foreign(self, entity: EntityName, rows: Rows) -> None:
        current = rows.head["generation"] == self._generation
        other = rows.head["fingerprint"] != DEFINITIONS[entity].fingerprint
        if (current & other).any():
            raise DefinitionChanged(
                f"stored {entity} rows follow other declarations than this code; run "
                "`tidemill features backfill --rebuild`"
            )


def _new_generation() -> str:
    return str(secrets.randbits(31) + 1)


def _fingerprints() -> bytes:
    return orjson.dumps({name: d.fingerprint for name, d in sorted(DEFINITIONS.items())})


def _only(batch: Batch, places: Sequence[int]) -> Batch:
    """The batch's events of these ids alone."""
    wanted = np.zeros(len(batch.ids), bool)
    wanted[list(places)] = True
    new_place = np.cumsum(wanted) - 1
    part = batch.where(wanted[batch.row])
    ids = [batch.ids[place] for place in places]
    return Batch(ids, new_place[part.row], part.time, part.kind, part.hash, part.table)


def _parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in parts of at most `size` ids, each with all events of its ids."""
    if len(batch.ids) <= size:
        yield batch
        return
    for start in range(0, len(batch.ids), size):
        part = batch.where((batch.row >= start) & (batch.row < start + size))
        yield replace(part, ids=batch.ids[start : start + size], row=part.row - start)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
