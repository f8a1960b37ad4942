"""An index of the available items by genre: sparse, and updated item by item.

Knows items and genres. Does not know availability or catalogue events
(`serving.state.catalogue`).

A table holds the genres of every item as codes, one slot after the other (the rows of a sparse
matrix). A changed item gets a new slot, so that what an earlier index points to stays as it is.
Weights depend on all items: an index computes them from the genres' counts when it is first used.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from serving.pipeline.items import UNKNOWN, RowNumbers
from streams.contract.events import CatalogueItem

_MIN_DEAD = 4_096  # codes of replaced items that a table keeps at least before it is built anew


@dataclass
class _Norms:
    """The weights and norms that an index of the table computed last, as one pair."""

    last: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.float32), np.empty(0, np.float32))


@dataclass(frozen=True)
class GenreIndex:
    """Available items at one catalogue version, sorted by id. N items, G genres, S slots.

    An item's genre vector has unit length. Rare genres weigh more, so sharing "Film-Noir" counts
    more than sharing "Drama".
    """

    version: int
    ids: tuple[str, ...]
    created_ms: np.ndarray  # int64 [N]
    slot: np.ndarray  # int32 [N]
    rows: np.ndarray  # int64 [N]: each item's row of the catalogue's table
    numbers: RowNumbers  # of that table
    names: Sequence[str]  # at least G
    counts: np.ndarray  # int32 [G], in how many items each genre is
    codes: np.ndarray  # int32: the genres of slot s are codes[starts[s]:starts[s + 1]]
    starts: np.ndarray  # int64 [S + 1]
    norms: _Norms

    def row_of(self, item_id: str) -> int:
        """The item's row, -1 if it is not available."""
        row = bisect_left(self.ids, item_id)
        return row if row < len(self.ids) and self.ids[row] == item_id else -1

    def genre_names(self) -> list[str]:
        """The genres of available items, sorted."""
        return sorted(self.names[code] for code in np.flatnonzero(self.counts).tolist())

    def vector(self, items: Iterable[tuple[CatalogueItem, float]]) -> np.ndarray:
        """float32 [G]: the weighted sum of the items' genre vectors, at unit length."""
        pairs = [(self.numbers.row_of(item.video_id), weight) for item, weight in items]
        rows = np.array([row for row, _ in pairs], np.int64)
        return self.vector_of(rows, np.array([weight for _, weight in pairs], np.float32))

    def vector_of(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """`vector` of items by their rows of the catalogue's table; unavailable ones count 0."""
        places = self.places_of(rows)
        open_ = places >= 0
        slot = self.slot[places[open_]]
        counts = self.starts[slot + 1] - self.starts[slot]
        ends = np.cumsum(counts)
        offsets = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        codes = self.codes[np.repeat(self.starts[slot], counts) + offsets]
        share = np.repeat(weights[open_] / self.norm[slot], counts) * self.weight[codes]
        total = np.bincount(codes, share, len(self.counts)).astype(np.float32)
        length = float(np.linalg.norm(total))
        return total / length if length else total

    def places_of(self, rows: np.ndarray) -> np.ndarray:
        """int64: where rows of the catalogue's table are in this index; -1 for unavailable items."""
        known = self._place
        inside = np.minimum(rows, len(known) - 1)  # a row that is newer than the index: the last
        return np.asarray(known[inside])

    def similarity(self, vector: np.ndarray) -> np.ndarray:
        """float32 [N]: cosine similarity of every available item with `vector`."""
        sums = _slot_sums(self.weight * vector, self.codes, self.starts)
        return np.asarray((sums / self.norm)[self.slot], dtype=np.float32)

    @cached_property
    def _place(self) -> np.ndarray:
        """int64 [R + 1]: the place by row of the table; the last one stands for no row."""
        place = np.full(int(self.rows.max(initial=-1)) + 2, UNKNOWN)
        place[self.rows] = np.arange(len(self.rows))
        return place

    @cached_property
    def weight(self) -> np.ndarray:
        """float32 [G]."""
        share = len(self.ids) / np.maximum(self.counts, 1)
        return np.where(self.counts > 0, np.log1p(share), 0).astype(np.float32)

    @cached_property
    def norm(self) -> np.ndarray:
        """float32 [S]; 1 for an item without genres.

        Only new slots are computed if no weight has changed, as when an item gets a new title.
        """
        weight, known = self.norms.last
        if len(known) > len(self.starts) - 1 or not self._has_weights(weight):
            known = known[:0]
        begin = len(known)
        first = self.starts[begin]
        squares = self.weight * self.weight
        sums = _slot_sums(squares, self.codes[first:], self.starts[begin:] - first)
        norm = np.append(known, np.where(sums > 0, np.sqrt(sums), 1).astype(np.float32))
        self.norms.last = self.weight, norm
        return norm

    def _has_weights(self, weight: np.ndarray) -> bool:
        return len(weight) <= len(self.weight) and bool(
            np.array_equal(weight, self.weight[: len(weight)])
        )


def _slot_sums(values: np.ndarray, codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float32 [S]: the sum of `values` (float32 [G]) over the codes of each slot."""
    sums = np.zeros(len(starts) - 1, np.float32)
    filled = np.flatnonzero(np.diff(starts))
    if len(filled):
        sums[filled] = np.add.reduceat(values[codes], starts[filled])
    return sums


class GenreTable:
    """The available items and their genres. Not thread safe; the indexes that it makes are."""

    def __init__(self, items: Iterable[CatalogueItem], numbers: RowNumbers | None = None) -> None:
        """`items`: sorted by id, each once. numbers: the rows of the catalogue's table."""
        self._numbers = RowNumbers() if numbers is None else numbers
        self._codes_of: dict[str, int] = {}
        self._names: list[str] = []
        self._counts = array("i")
        self._codes, self._starts = _Growing(np.int32), _Growing(np.int64)
        self._starts.extend(np.zeros(1, np.int64))
        self._dead = 0
        self._norms = _Norms()
        self._ids: list[str] = []
        created, codes, starts = array("q"), array("i"), array("q")
        for item in items:
            self._ids.append(item.video_id)
            created.append(item.created_ms)
            codes.extend(self._add_genres(item.genres))
            starts.append(len(codes))
        self._codes.extend(np.frombuffer(codes, np.int32))
        self._starts.extend(np.frombuffer(starts, np.int64))
        self._created = np.array(created, np.int64)
        self._slot = np.arange(len(self._ids), dtype=np.int32)
        self._rows = self._numbers.add(self._ids)

    @property
    def needs_rebuild(self) -> bool:
        """Whether replaced items take more room than those that are available."""
        return self._dead > max(_MIN_DEAD, len(self._codes.filled) - self._dead)

    def put(self, item: CatalogueItem, replaced: CatalogueItem | None) -> None:
        """Adds an item, or replaces it. `replaced`: as it was put before."""
        row = bisect_left(self._ids, item.video_id)
        slot = len(self._starts.filled) - 1
        if replaced is not None:
            self._drop_genres(replaced.genres)
            self._slot[row], self._created[row] = slot, item.created_ms
        else:
            self._ids.insert(row, item.video_id)
            self._slot = np.insert(self._slot, row, slot)
            self._rows = np.insert(self._rows, row, self._numbers.add([item.video_id])[0])
            self._created = np.insert(self._created, row, item.created_ms)
        self._codes.extend(np.array(self._add_genres(item.genres), np.int32))
        self._starts.extend(np.array([len(self._codes.filled)], np.int64))

    def drop(self, item: CatalogueItem) -> None:
        """Removes an item, as it was put."""
        row = bisect_left(self._ids, item.video_id)
        del self._ids[row]
        self._slot, self._created = np.delete(self._slot, row), np.delete(self._created, row)
        self._rows = np.delete(self._rows, row)
        self._drop_genres(item.genres)

    def index(self, version: int) -> GenreIndex:
        """The index of the items now."""
        return GenreIndex(
            version=version,
            ids=tuple(self._ids),
            created_ms=self._created.copy(),
            slot=self._slot.copy(),
            rows=self._rows.copy(),
            numbers=self._numbers,
            names=self._names,
            counts=np.array(self._counts, np.int32),
            codes=self._codes.filled,
            starts=self._starts.filled,
            norms=self._norms,
        )

    def _add_genres(self, genres: Sequence[str]) -> list[int]:
        """The genres' codes, each once. A genre that an item names twice is counted twice."""
        found: dict[int, None] = {}
        for genre in genres:
            code = self._codes_of.setdefault(genre, len(self._names))
            if code == len(self._names):
                self._names.append(genre)
                self._counts.append(0)
            self._counts[code] += 1
            found[code] = None
        return list(found)

    def _drop_genres(self, genres: Sequence[str]) -> None:
        for genre in genres:
            self._counts[self._codes_of[genre]] -= 1
        self._dead += len(set(genres))


class _Growing:
    """An array that grows at its end. What `filled` returned stays valid and never changes."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array = np.empty(16, dtype)
        self._length = 0

    @property
    def filled(self) -> np.ndarray:
        return self._array[: self._length]

    def extend(self, values: np.ndarray) -> None:
        end = self._length + len(values)
        if end > len(self._array):
            grown = np.empty(end + end // 8, self._array.dtype)
            grown[: self._length] = self.filled
            self._array = grown
        self._array[self._length : end] = values
        self._length = end
