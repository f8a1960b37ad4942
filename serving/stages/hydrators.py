"""Hydrators: what is looked up about the user and about each candidate.

Knows the feature store and the catalogue. Does not know sources, filters or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from features.store import FeatureStore, Status
from serving.pipeline.frames import absent_rows, concat_frames, take_rows
from serving.pipeline.query import Candidate, Query
from serving.pipeline.stage import Hydration
from serving.state.catalogue import LiveCatalogue
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
    """Reads every candidate's row in one call."""

    store: FeatureStore
    name: str = "video_features"

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration:
        ids = [candidate.item_id for candidate in candidates]
        return Hydration(item_features=self.store.read("video", ids, query.now_ms))


@dataclass(frozen=True)
class AuthorFeatures:
    """Reads the row of every candidate's author in one call, each author once.

    A candidate without an author, or not in the catalogue, gets an absent row.
    """

    store: FeatureStore
    catalogue: LiveCatalogue
    name: str = "author_features"

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration:
        items = self.catalogue.items([candidate.item_id for candidate in candidates])
        authors = [(item.author_id or "") if item is not None else "" for item in items]
        known = sorted(set(authors) - {""})
        # Under today's declarations, which may be younger than this module.
        rows = absent = absent_rows("author", [""])
        if known:
            found = self.store.read("author", known, query.now_ms)
            rows = concat_frames([found, absent])
        row_of = {author_id: row for row, author_id in enumerate(rows.ids)}
        return Hydration(author_features=take_rows(rows, [row_of[a] for a in authors]))


@dataclass(frozen=True)
class CatalogueItems:
    """Looks up every candidate in the catalogue; None for an unknown item."""

    catalogue: LiveCatalogue
    name: str = "catalogue"

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration:
        del query
        items = self.catalogue.items([candidate.item_id for candidate in candidates])
        return Hydration(catalogue_items=items)
