"""The live catalogue, which keeps an index of its items by genre.

Knows items and availability. Does not know where catalogue events come from
(`serving.console.live` feeds them), how they are folded (`streams.catalogue`) nor how items are
indexed (`serving.state.genre_index`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from serving.pipeline.items import ItemTable
from serving.state.genre_index import GenreIndex, GenreTable
from streams.catalogue import item_id_of
from streams.contract.events import CatalogueEvent, CatalogueItem


class CatalogueFold(Protocol):
    """The part of `streams.catalogue.Catalogue` that this module needs."""

    @property
    def version(self) -> int: ...

    def apply(self, event: CatalogueEvent, /) -> object: ...

    def would_change(self, event: CatalogueEvent, /) -> bool: ...

    def get(self, item_id: str, /) -> CatalogueItem | None: ...

    def available(self, item_id: str, /) -> bool: ...

    def available_ids(self) -> list[str]: ...

    def taken_down_ids(self) -> list[str]: ...


class LiveCatalogue:
    """A catalogue that events change while requests read it. Thread safe."""

    def __init__(self, fold: CatalogueFold) -> None:
        self._fold = fold
        self.table = ItemTable(fold.get)  # rows stay, whatever becomes of their items
        self._lock = threading.Lock()
        self._index: GenreIndex | None = None
        self._table: GenreTable | None = None
        self._put: dict[str, CatalogueItem] = {}  # in the table
        self._changed: set[str] = set()  # since the table was updated
        self._known_version = -1  # of the fold, after the changes in `_changed`
        self._taken_down: tuple[int, tuple[str, ...]] = (-1, ())

    @property
    def version(self) -> int:
        return self._fold.version

    def apply(self, event: CatalogueEvent) -> None:
        with self._lock:
            before = self._fold.version
            self._fold.apply(event)
            if before == self._known_version:  # else others changed the fold too
                self._known_version = self._fold.version
                self._changed.add(item_id_of(event))
            self.table.forget_facts(item_id_of(event))

    def get(self, item_id: str) -> CatalogueItem | None:
        return self._fold.get(item_id)

    def available(self, item_id: str) -> bool:
        return self._fold.available(item_id)

    def would_change(self, event: CatalogueEvent) -> bool:
        """Whether the event, as the next one of the log, would change anything."""
        return self._fold.would_change(event)

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
        """The index of the newest version; updated after a change."""
        index = self._index
        if index is not None and index.version == self._fold.version:
            return index
        with self._lock:
            version = self._fold.version
            self._index = self._updated_table(version).index(version)
            return self._index

    def _updated_table(self, version: int) -> GenreTable:
        """The table at the fold's `version`, from the last one if all changes since are known."""
        table = self._table
        if table is None or table.needs_rebuild or version != self._known_version:
            table = self._table = self._built_table()
        for item_id in self._changed:
            put = self._put.get(item_id)
            item = self._fold.get(item_id) if self._fold.available(item_id) else None
            if item is put:
                continue
            if item is not None:
                table.put(item, put)
                self._put[item_id] = item
            elif put is not None:
                table.drop(put)
                del self._put[item_id]
        self._changed.clear()
        self._known_version = version
        return table

    def _built_table(self) -> GenreTable:
        self._changed.clear()
        self.table.forget_all_facts()
        found = ((each, self._fold.get(each)) for each in self._fold.available_ids())
        self._put = {item_id: item for item_id, item in found if item is not None}
        return GenreTable(self._put.values(), self.table.numbers)
