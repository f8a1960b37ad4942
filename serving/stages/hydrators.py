"""Hydrators: what is looked up about the user and about each candidate.

Knows the feature store and the catalogue. Does not know sources, filters or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from features.store import FeatureStore, Status
from serving.pipeline.items import CatalogueRows
from serving.pipeline.pool import Pool
from serving.pipeline.query import Query
from serving.pipeline.stage import Hydration
from serving.state.catalogue import LiveCatalogue
from serving.state.feature_rows import FeatureRows
from serving.state.last_rows import LastUserRows


@dataclass(frozen=True)
class UserFeatures:
    """Reads the user's row, replacing the last good row that the query arrived with."""

    store: FeatureStore
    last_users: LastUserRows
    name: str = "user_features"
    fields: tuple[str, ...] = ("user", "cold_user", "stale")

    def hydrate(self, query: Query) -> Query:
        user = self.store.read("user", [query.user_id], query.now_ms)
        self.last_users.keep(user)
        known = int(user.status[0]) == Status.PRESENT
        return replace(query, user=user, cold_user=not known, stale=False)


@dataclass(frozen=True)
class ItemFeatures:
    """The row of every candidate, of which those that are not kept are read in one call."""

    features: FeatureRows
    store: FeatureStore
    catalogue: LiveCatalogue
    name: str = "video_features"

    def from_memory(self, query: Query, pool: Pool) -> Hydration | None:
        rows = pool.rows_in(self.catalogue.table)
        if len(rows) and rows.min() < 0:
            return None
        kept = self.features.kept(rows, query.now_ms)
        return None if kept is None else Hydration(item_features=kept)

    def hydrate(self, query: Query, pool: Pool) -> Hydration:
        rows = pool.rows_in(self.catalogue.table)
        if len(rows) and rows.min() < 0:  # not in the catalogue, so they get no row to keep
            return Hydration(item_features=self.store.read("video", pool.item_ids, query.now_ms))
        return Hydration(item_features=self.features.read(rows, query.now_ms))


@dataclass(frozen=True)
class AuthorFeatures:
    """The row of every candidate's author; those that are not kept are read in one call, each once.

    A candidate without an author, or not in the catalogue, gets an absent row.
    """

    features: FeatureRows
    catalogue: LiveCatalogue
    name: str = "author_features"

    def from_memory(self, query: Query, pool: Pool) -> Hydration | None:
        kept = self.features.kept(self._authors(pool), query.now_ms)
        return None if kept is None else Hydration(author_features=kept)

    def hydrate(self, query: Query, pool: Pool) -> Hydration:
        found = self.features.read(self._authors(pool), query.now_ms)
        return Hydration(author_features=found)

    def _authors(self, pool: Pool) -> np.ndarray:
        table = self.catalogue.table
        return table.author_rows(pool.rows_in(table))


@dataclass(frozen=True)
class CatalogueItems:
    """Looks up every candidate in the catalogue; None for an unknown item."""

    catalogue: LiveCatalogue
    name: str = "catalogue"

    def from_memory(self, query: Query, pool: Pool) -> Hydration:
        return self.hydrate(query, pool)

    def hydrate(self, query: Query, pool: Pool) -> Hydration:
        del query
        rows = pool.rows_in(self.catalogue.table)
        if len(rows) and rows.min() < 0:
            return Hydration(catalogue_items=self.catalogue.items(pool.item_ids))
        return Hydration(catalogue_items=CatalogueRows(self.catalogue.table, rows))
