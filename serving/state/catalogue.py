"""The live catalogue, and an index of its items by genre.

Knows items, availability and genres. Does not know where catalogue events come from
(`serving.console.live` feeds them) nor how they are folded (`streams.catalogue`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from streams.contract.events import CatalogueEvent, CatalogueItem


class CatalogueFold(Protocol):
    """The part of `streams.catalogue.Catalogue` that this module needs."""

    @property
    def version(self) -> int: ...

    def apply(self, event: CatalogueEvent, /) -> object: ...

    def get(self, item_id: str, /) -> CatalogueItem | None: ...

    def available(self, item_id: str, /) -> bool: ...

    def available_ids(self) -> list[str]: ...

    def taken_down_ids(self) -> list[str]: ...


@dataclass(frozen=True)
class GenreIndex:
    """Available items at one catalogue version.

    `genres` float32 [N, G]: rows of unit length. Rare genres weigh more, so sharing
    "Film-Noir" counts more than sharing "Drama".
    """

    version: int
    ids: tuple[str, ...]
    row: dict[str, int]
    genres: np.ndarray
    genre_row: dict[str, int]
    created_ms: np.ndarray  # int64 [N]

    def vector(self, items: Iterable[tuple[CatalogueItem, float]]) -> np.ndarray:
        """float32 [G]: the weighted sum of the items' genre vectors, at unit length."""
        total = np.zeros(len(self.genre_row), np.float32)
        for item, weight in items:
            row = self.row.get(item.video_id)
            if row is not None:
                total += np.float32(weight) * self.genres[row]
        norm = float(np.linalg.norm(total))
        return total / norm if norm else total

    def similarity(self, vector: np.ndarray) -> np.ndarray:
        """float32 [N]: cosine similarity of every available item with `vector`."""
        return np.asarray(self.genres @ vector, dtype=np.float32)


class LiveCatalogue:
    """A catalogue that events change while requests read it. Thread safe."""

    def __init__(self, fold: CatalogueFold) -> None:
        self._fold = fold
        self._lock = threading.Lock()
        self._index: GenreIndex | None = None
        self._taken_down: tuple[int, tuple[str, ...]] = (-1, ())

    @property
    def version(self) -> int:
        return self._fold.version

    def apply(self, event: CatalogueEvent) -> None:
        with self._lock:
            self._fold.apply(event)

    def get(self, item_id: str) -> CatalogueItem | None:
        return self._fold.get(item_id)

    def available(self, item_id: str) -> bool:
        return self._fold.available(item_id)

    def taken_down(self) -> tuple[str, ...]:
        """Known items that may not be shown; listed again only after a change."""
        version, found = self._taken_down
        if version != self._fold.version:
            version = self._fold.version
            found = tuple(self._fold.taken_down_ids())
            self._taken_down = version, found
        return found

    def items(self, item_ids: Sequence[str]) -> list[CatalogueItem | None]:
        return [self._fold.get(item_id) for item_id in item_ids]

    def index(self) -> GenreIndex:
        """The index of the newest version; rebuilt only after a change."""
        index = self._index
        if index is not None and index.version == self._fold.version:
            return index
        with self._lock:
            self._index = _build_index(self._fold)
            return self._index


def _build_index(fold: CatalogueFold) -> GenreIndex:
    version = fold.version
    items = [item for each in fold.available_ids() if (item := fold.get(each)) is not None]
    counts = Counter(genre for item in items for genre in item.genres)
    genre_row = {genre: row for row, genre in enumerate(sorted(counts))}
    genres = np.zeros((len(items), len(genre_row)), np.float32)
    for row, item in enumerate(items):
        for genre in item.genres:
            genres[row, genre_row[genre]] = np.log1p(len(items) / counts[genre])
    norms = np.linalg.norm(genres, axis=1, keepdims=True)
    return GenreIndex(
        version=version,
        ids=tuple(item.video_id for item in items),
        row={item.video_id: row for row, item in enumerate(items)},
        genres=genres / np.where(norms > 0, norms, 1),
        genre_row=genre_row,
        created_ms=np.array([item.created_ms for item in items], np.int64),
    )
