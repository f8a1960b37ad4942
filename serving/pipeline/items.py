"""Row numbers for ids, and the catalogue's facts about items as columns by row.

Knows ids, and what the catalogue says of an item. Does not know which items may be shown
(`serving.state.genre_index`), their events' features (`serving.state.feature_rows`) nor requests.

A row number is given once and never changes while the process runs, so a column by row stays
right while items come and go, and stages exchange int64 arrays in place of objects.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import overload

import numpy as np

from models.ids import id_hash
from models.ranking.ple.features import GENRE_BUCKETS, ItemColumns, item_columns
from streams.contract.events import CatalogueItem
from streams.contract.topics import entity_hash

UNKNOWN = -1  # the row of an id without one


def best_places(scores: np.ndarray, count: int) -> np.ndarray:
    """int64: where the `count` highest scores are, highest first; ties keep their order.

    scores: numbers without NaN. Sorts only what is returned.
    """
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    if count <= 0:
        return np.zeros(0, np.int64)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > least)
    above = above[np.argsort(-scores[above], kind="stable")]
    return np.concatenate([above, np.flatnonzero(scores == least)[: count - len(above)]])


class RowNumbers:
    """Ids by row and rows by id. Thread safe; never shrinks."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._row: dict[str, int] = {}
        self._ids: list[str] = []
        self._lock = threading.Lock()
        self.add(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def row_of(self, entity_id: str) -> int:
        return self._row.get(entity_id, UNKNOWN)

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """int64, one for each id; `UNKNOWN` for ids without a row."""
        known = self._row
        return np.array([known.get(entity_id, UNKNOWN) for entity_id in ids], np.int64)

    def among(self, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """bool, one for each of `rows`: whether it is one of `wanted` (int64; `UNKNOWN` counts
        for nothing)."""
        flags = np.zeros(len(self._ids) + 1, bool)  # the last place is that of `UNKNOWN`
        flags[wanted] = True
        flags[UNKNOWN] = False
        return np.asarray(flags[rows])

    def add(self, ids: Iterable[str]) -> np.ndarray:
        """int64: the ids' rows, new ones where they have none. Not for ids that callers make up:
        rows are kept for good."""
        with self._lock:
            return np.array([self._added(entity_id) for entity_id in ids], np.int64)

    def id_of(self, row: int) -> str:
        return self._ids[row]

    def ids_of(self, rows: np.ndarray) -> list[str]:
        ids = self._ids
        return [ids[row] for row in rows.tolist()]

    def _added(self, entity_id: str) -> int:
        row = self._row.get(entity_id)
        if row is None:
            row = len(self._ids)
            self._ids.append(entity_id)  # first, so that a row that is found has an id
            self._row[entity_id] = row
        return row


@dataclass
class _Facts:
    """Columns of R rows. `known`: filled in since the item last changed."""

    known: np.ndarray  # bool [R]
    author_row: np.ndarray  # int64 [R]
    draw_hash: np.ndarray  # uint64 [R], seeds the noise of the selector's draw
    genre_codes: np.ndarray  # object [R], tuples of codes, each once
    genre_share: np.ndarray  # float64 [R], 1 / number of genres
    id_hash: np.ndarray  # int64 [R]
    author_hash: np.ndarray  # int64 [R]
    genres: np.ndarray  # float32 [R, GENRE_BUCKETS]
    duration_ms: np.ndarray  # int64 [R]
    price_cents: np.ndarray  # int64 [R]
    created_ms: np.ndarray  # int64 [R]
    aigc: np.ndarray  # float32 [R]

    @staticmethod
    def empty(rows: int) -> _Facts:
        def ints() -> np.ndarray:
            return np.zeros(rows, np.int64)

        return _Facts(
            known=np.zeros(rows, bool),
            author_row=ints(),
            draw_hash=np.zeros(rows, np.uint64),
            genre_codes=np.full(rows, None, object),
            genre_share=np.zeros(rows),
            id_hash=ints(),
            author_hash=ints(),
            genres=np.zeros((rows, GENRE_BUCKETS), np.float32),
            duration_ms=ints(),
            price_cents=ints(),
            created_ms=ints(),
            aigc=np.zeros(rows, np.float32),
        )

    def grown(self, rows: int) -> _Facts:
        """The same facts with room for `rows` rows, in new arrays."""
        more = _Facts.empty(rows)
        for each in fields(self):
            have = getattr(self, each.name)
            getattr(more, each.name)[: len(have)] = have
        return more


_COPIED = ("author_hash", "genres", "duration_ms", "price_cents", "created_ms", "aigc")


class ItemTable:
    """The catalogue's items by row. Facts are read when they are first needed. Thread safe.

    find: an item by id, also where it is taken down; None for an unknown one.
    """

    def __init__(self, find: Callable[[str], CatalogueItem | None]) -> None:
        self.find = find
        self.numbers = RowNumbers()
        self.authors = RowNumbers([""])  # row 0: no author
        self._facts = _Facts.empty(16)
        self._genre_codes: dict[str, int] = {}
        self._lock = threading.Lock()
        self.watchers: list[Callable[[int | None], None]] = []
        """Called with the row of an item that has changed; None: any may have."""

    def forget_facts(self, item_id: str) -> None:
        """The item has changed: its facts are read again."""
        row = self.numbers.row_of(item_id)
        with self._lock:
            if 0 <= row < len(self._facts.known):
                self._facts.known[row] = False
        for watch in self.watchers:
            watch(row)

    def forget_all_facts(self) -> None:
        with self._lock:
            self._facts.known[:] = False
        for watch in self.watchers:
            watch(None)

    def facts(self, rows: np.ndarray) -> _Facts:
        """Facts that are filled in for these rows, to be indexed by them.

        Raises:
            ValueError: the catalogue does not know one of the items.
        """
        facts = self._facts
        if len(rows) and (rows.max() >= len(facts.known) or not facts.known[rows].all()):
            facts = self._filled(rows)
        return facts

    def columns(self, rows: np.ndarray) -> ItemColumns:
        """What the ranker reads of the items. Raises `ValueError` as `facts`."""
        facts = self.facts(rows)
        return ItemColumns(**{name: getattr(facts, name)[rows] for name in _COPIED})

    def genre_shares(self, rows: np.ndarray) -> np.ndarray:
        """float64 [C, G]: each row sums to 1 over its item's genres, 0 without any. G: the genres
        of these items, at least 1. Items that the catalogue does not know have none."""
        in_catalogue = self._in_catalogue(rows)
        known = rows[in_catalogue]
        facts = self.facts(known)
        codes = facts.genre_codes[known].tolist()
        counts = np.fromiter(map(len, codes), np.int64, len(codes))
        flat = np.fromiter(chain.from_iterable(codes), np.int64, int(counts.sum()))
        genres, column = np.unique(flat, return_inverse=True)
        shares = np.zeros((len(rows), max(len(genres), 1)))
        owner = np.repeat(np.flatnonzero(in_catalogue), counts)
        shares[owner, column] = np.repeat(facts.genre_share[known], counts)
        return shares

    def draw_hashes(self, rows: np.ndarray) -> np.ndarray:
        """uint64 [C]. Raises `ValueError` as `facts`."""
        return np.asarray(self.facts(rows).draw_hash[rows])

    def author_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64 [C], rows of `authors`; 0 for items without one and unknown ones."""
        found = np.zeros(len(rows), np.int64)
        known = self._in_catalogue(rows)
        found[known] = self.facts(rows[known]).author_row[rows[known]]
        return found

    def _in_catalogue(self, rows: np.ndarray) -> np.ndarray:
        """bool [C]"""
        known = self._facts.known
        if len(rows) and rows.min() >= 0 and rows.max() < len(known) and known[rows].all():
            return np.ones(len(rows), bool)
        ids = self.numbers.id_of
        return np.array([r >= 0 and self.find(ids(r)) is not None for r in rows.tolist()], bool)

    def _filled(self, rows: np.ndarray) -> _Facts:
        with self._lock:
            if len(self._facts.known) < len(self.numbers):
                self._facts = self._facts.grown(len(self.numbers) * 5 // 4)
            facts = self._facts
            if rows.min() < 0:
                raise ValueError("a candidate has no catalogue item")
            missing = np.unique(rows[~facts.known[rows]])
            items = [self.find(item_id) for item_id in self.numbers.ids_of(missing)]
            if None in items:
                raise ValueError("a candidate has no catalogue item")
            self._fill(facts, missing, [item for item in items if item is not None])
            return facts

    def _fill(self, facts: _Facts, rows: np.ndarray, items: Sequence[CatalogueItem]) -> None:
        columns = item_columns(items)
        for name in _COPIED:
            getattr(facts, name)[rows] = getattr(columns, name)
        facts.author_row[rows] = self.authors.add(item.author_id or "" for item in items)
        for row, item in zip(rows.tolist(), items, strict=True):
            facts.id_hash[row] = id_hash(item.video_id)
            facts.draw_hash[row] = entity_hash(draw_name(item.video_id, None))
            codes = dict.fromkeys(
                self._genre_codes.setdefault(g, len(self._genre_codes)) for g in item.genres
            )
            facts.genre_codes[row] = tuple(codes)
            facts.genre_share[row] = 1.0 / len(item.genres) if item.genres else 0.0
        facts.known[rows] = True


def draw_name(item_id: str, query: str | None) -> str:
    """What seeds the noise of a candidate's draw."""
    return f"{item_id}\0{query or ''}"


class CatalogueRows(Sequence[CatalogueItem | None]):
    """The items of some rows, in order; None for unknown ones. They are looked up when asked for."""

    def __init__(self, table: ItemTable, rows: np.ndarray) -> None:
        self.table, self.rows = table, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> CatalogueItem | None: ...

    @overload
    def __getitem__(self, at: slice) -> CatalogueRows: ...

    def __getitem__(self, at: int | slice) -> CatalogueItem | CatalogueRows | None:
        if isinstance(at, slice):
            return CatalogueRows(self.table, self.rows[at])
        row = int(self.rows[at])
        return None if row < 0 else self.table.find(self.table.numbers.id_of(row))

    def columns(self) -> ItemColumns:
        """The items as columns. Raises `ValueError` where the catalogue does not know one."""
        return self.table.columns(self.rows)
