"""The online store: one hash per entity row in Feast's format, folded by compare-and-set.

Knows Redis commands, generations and conflicts. Does not import Feast: plain Feast
clients read the same keys through `features.feast.online_store`. One database serves one
project.

A generation is one life of the stored rows. It is drawn anew when the store is found
empty and when a rebuild begins, it is written into every row, and no fold may write
under another than the one that it started with: so a flushed, failed-over or rebuilt
store is noticed at the next batch (`GenerationChanged`), never silently half filled.

A process that keeps rows owns those of an entity while its claim stands in the store; any
other writer breaks the claim in the step in which it writes. What the owner has read or
written under its claim needs no comparing (docs/adr/0012, docs/adr/0015).
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import numpy as np
import orjson
import pyarrow as pa

from features.definitions import DEFINITIONS
from features.kernels.layout import (
    FOREVER_MS,
    VERSION,
    decode,
    digests,
    erased_until,
    tombstone,
)
from features.online.compare_and_set import DROP, SWAP, Swap, plain_sets
from features.online.connection import Connection, Script, hget
from features.online.feast_keys import GENERATION, RowFormat, facts_key, unwrap
from features.online.lease import Claims, Ids
from features.online.rebuild_cutoff import Cut
from features.online.row_cache import RowCache
from features.rows.aggregate import Fold, Folded, Stored, apart, group
from features.rows.byte_slices import Spans
from features.rows.finalize import finish_blobs
from features.store import (
    DefinitionChanged,
    EntityName,
    FeatureFrame,
    GenerationChanged,
    StoreDown,
)
from streams.bus.contract import Stamp

ATTEMPTS = 32  # a conflict means that another writer moved on; it cannot lose 32 times alone
SCRIPT_ROWS = 128  # rows per script call: more than the server's caches hold cost it more
READ_ROWS = 1024  # rows asked for at once
BYTES_AT_ONCE = 4 << 20  # of rows folded together: bounds memory, whatever the batch
ROWS_AT_ONCE = range(512, 8_192)  # fewer cost more than they save, more leave the caches
FIRST_GUESS_BYTES = 4_096  # of a row, before any was folded
CALLS_AT_ONCE = 32  # calls packed and sent before their replies are read: bounds memory
_NO_TIME = np.zeros(1, np.int64)
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
        self._meta = facts_key(project)
        self._swap_script = Script(self.connection, SWAP)
        self._drop_script = Script(self.connection, DROP)
        self._cache = RowCache(cached_rows)
        self._claims = Claims(self.connection, self._meta, self._cache)
        self._folding = {name: threading.Lock() for name in DEFINITIONS}
        self._row_bytes = dict.fromkeys(DEFINITIONS, float(FIRST_GUESS_BYTES))
        self._generation = 0
        self._cut = Cut()

    # ---- the contract

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        generation = self.generation()
        batch = group(DEFINITIONS[entity], events)
        if len(parts := apart(events, batch)) > 1:
            return sum(self.fold(entity, part, stamp) for part in parts)
        batch = self._cut.beyond(entity, batch, stamp)
        work, ids = Fold(DEFINITIONS[entity], batch, stamp, generation), Ids.of(batch.names)
        n, step = len(ids.keys), self._rows_at_once(entity)
        with self._folding[entity]:
            self._claims.lay(entity, self._formats[entity].owner_key, generation)
            rows = (np.arange(a, min(a + step, n)) for a in range(0, n, step))
            return sum(self._fold_part(entity, work, ids, places) for places in rows)

    def _rows_at_once(self, entity: EntityName) -> int:
        rows = int(BYTES_AT_ONCE / self._row_bytes[entity])
        return min(max(rows, ROWS_AT_ONCE.start), ROWS_AT_ONCE.stop)

    def _fold_part(self, entity: EntityName, work: Fold, ids: Ids, places: np.ndarray) -> int:
        written = 0
        for _ in range(ATTEMPTS):
            stored, sure = self._stored(entity, ids, places)
            folded = work.rows(places, stored)
            if folded.foreign:
                raise DefinitionChanged(
                    f"stored {entity} rows follow other declarations than this code; run "
                    "`tidemill features backfill --rebuild`"
                )
            lost = self._swap(entity, ids, folded, sure[np.searchsorted(places, folded.changed)])
            written += len(folded.changed) - len(lost)
            if not len(lost):
                return written
            places = lost
        raise StoreDown(f"{len(places)} {entity} rows lost every compare-and-set; fold again")

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
            name, before = Ids.of(pa.array([user_id])), digests(Spans.of(blobs)).view(np.uint64)
            swap = Swap(self._formats["user"], self._meta, generation)
            lost, _ = self._swap_rows(swap, name.ids, before[:, 0], Spans.of([blob]), _NO_TIME)
            if not lost:
                self._cache.drop("user", name.keys)
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
        with self.connection.failures(), self.connection.client.pipeline(transaction=True) as pipe:
            pipe.hset(self._meta, mapping=fields).unlink(*self._owner_keys()).execute()
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
            found = [p for p in np.flatnonzero(old).tolist() if blobs[p] is not None]
            if found:
                keys = [layout.key(ids[p]) for p in found]
                stored = [d.tobytes() for d in digests(Spans.of([blobs[p] for p in found]))]
                keys.insert(0, layout.owner_key)
                swept += self._drop_script(keys, [layout.row_field, *stored])
        return swept

    def tear_down(self) -> int:
        """Deletes this project's rows and facts, and nothing of any other project."""
        deleted = 0
        for entity, layout in self._formats.items():
            for ids in _chunks(self.ids(entity), SCRIPT_ROWS):
                with self.connection.failures():
                    deleted += self.connection.client.unlink(*map(layout.key, ids))
        with self.connection.failures():
            self.connection.client.unlink(self._meta, *self._owner_keys())
        self._cache.clear()
        self._generation = 0
        return deleted

    def _owner_keys(self) -> list[bytes]:
        return [layout.owner_key for layout in self._formats.values()]

    # ---- one batch

    def _stored(
        self, entity: EntityName, ids: Ids, places: np.ndarray
    ) -> tuple[Stored, np.ndarray]:
        """These rows, kept or else read; and which were so under the claim that stands (bool)."""
        cached, start, size, turn = self._cache.find(entity, ids.keys[places], ids.checks[places])
        claim = self._claims.held(entity)
        sure = turn >= claim.since if claim else np.zeros(len(places), bool)
        missing = np.flatnonzero(size == 0)
        read: list[bytes | None] = []
        for chunk in _chunks(missing.tolist(), READ_ROWS):
            blobs, stored = self._fetch(entity, ids.text(places[chunk]))
            if stored != self._generation:
                raise self._changed(stored)
            read += blobs
        found = Spans.of(read)
        start[missing], size[missing] = len(cached) + found.offsets[:-1], found.lengths
        sure[missing] = claim is not None
        return Stored(cached, found.data, start, size), sure

    def _fetch(
        self, entity: EntityName, ids: Sequence[str]
    ) -> tuple[list[bytes | None], int | None]:
        reads = map(self._formats[entity].packed_read, ids)
        packed = b"".join((hget(self._meta, GENERATION), *reads))
        generation, *values = self.connection.exchange([packed], 1 + len(ids))
        return [unwrap(v) for v in values], None if generation is None else int(generation)

    def _swap(self, entity: EntityName, ids: Ids, folded: Folded, sure: np.ndarray) -> np.ndarray:
        """Writes the changed rows that are still those read, as is `sure` (bool [changed]) while
        the claim stands; the others' places."""
        changed, rows = folded.changed, folded.rows
        if not len(changed):
            return changed
        self._row_bytes[entity] = len(rows.data) / len(rows)
        keys, checks, names = ids.keys[changed], ids.checks[changed], ids.ids
        if len(changed) < len(names):
            names = names.take(changed)
        try:
            lost = self._write(entity, names, folded, sure)
        except BaseException:
            self._claims.lose(entity)  # nobody knows which of the rows were written
            raise
        self._cache.put(entity, keys, checks, rows)
        self._cache.drop(entity, keys[lost])
        return changed[lost]

    def _write(self, entity: EntityName, ids: Spans, folded: Folded, sure: np.ndarray) -> list[int]:
        """The rows' places, ascending, that lost against another writer."""
        layout, rows, times = self._formats[entity], folded.rows, folded.last_event_ms
        mine = np.flatnonzero(sure)
        n = self._claims.write(entity, plain_sets(layout, *_picked(mine, ids, rows, times)))
        if n == len(ids):
            return []
        rest = np.delete(np.arange(len(ids)), mine[:n])
        claim = self._claims.held(entity)
        swap = Swap(layout, self._meta, self._generation, claim.token if claim else b"")
        names, rows, times = _picked(rest, ids, rows, times)
        lost, owned = self._swap_rows(swap, names, folded.before[rest], rows, times)
        if not owned:
            self._claims.lose(entity)
        places: list[int] = rest[lost].tolist()
        return places

    def _swap_rows(
        self, swap: Swap, ids: Spans, before: np.ndarray, rows: Spans, times: np.ndarray
    ) -> tuple[list[int], bool]:
        """Compare-and-set of each row; the places of those that lost, ascending, and whether
        the claim that `swap` names stands."""
        lost: list[int] = []
        start, owned = 0, True
        for calls in _chunks(swap.calls(ids, before, rows, times, SCRIPT_ROWS), CALLS_AT_ONCE):
            replies = self._swap_script.many(calls)
            if [-1] in replies:
                raise self._changed(self.stored_generation())
            for owns, *places in replies:
                owned = owned and bool(owns)
                lost += [start + row for row in places]
                start += SCRIPT_ROWS
        return lost, owned

    def _changed(self, stored: int | None) -> GenerationChanged:
        self._cache.clear()
        what = "was emptied" if stored is None else "is being rebuilt"
        return GenerationChanged(
            f"the online store at {self.connection.address} {what} while this process folded "
            f"generation {self._generation:08x}: start the fold again, from the topics' start"
        )


def _picked(
    places: np.ndarray, ids: Spans, rows: Spans, times: np.ndarray
) -> tuple[Spans, Spans, np.ndarray]:
    if len(places) == len(ids):
        return ids, rows, times
    return ids.take(places), rows.take(places), times[places]


def _new_generation() -> str:
    return str(secrets.randbits(31) + 1)


def _fingerprints() -> bytes:
    """What stored rows follow: every declaration, and the layout of a row's bytes."""
    declared = {name: d.fingerprint for name, d in sorted(DEFINITIONS.items())}
    return orjson.dumps(declared | {"row": VERSION})


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
