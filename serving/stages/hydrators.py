"""Hydrators: what is looked up about the user and about each candidate.

Knows the feature store and the catalogue. Does not know sources, filters or models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from features.store import FeatureStore, Status
from serving.pipeline.query import Candidate, Query, take
from serving.pipeline.stage import Hydration
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import LastUsers, absent, joined

_NOBODY = absent("author", [""])  # made once: half a millisecond


@dataclass(frozen=True)
class UserFeatures:
    """Reads the user's row. The query arrives with the last good row, which this replaces."""

    store: FeatureStore
    last: LastUsers
    name: str = "user_features"
    fields: tuple[str, ...] = ("user", "cold_user", "stale")

    def hydrate(self, query: Query) -> Query:
        user = self.store.read("user", [query.user_id], query.now_ms)
        self.last.keep(user)
        known = int(user.status[0]) == Status.PRESENT
        return replace(query, user=user, cold_user=not known, stale=False)


@dataclass(frozen=True)
class VideoFeatures:
    """Reads every candidate's row in one call."""

    store: FeatureStore
    name: str = "video_features"

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration:
        ids = [candidate.video_id for candidate in candidates]
        return Hydration(videos=self.store.read("video", ids, query.now_ms))


@dataclass(frozen=True)
class AuthorFeatures:
    """Reads the row of every candidate's author in one call, each author once.

    Runs beside `VideoFeatures`, so an answer waits for the longer of the two. A candidate
    without an author, or unknown to the catalogue, gets an absent row.
    """

    store: FeatureStore
    catalogue: LiveCatalogue
    name: str = "author_features"

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration:
        items = self.catalogue.items([candidate.video_id for candidate in candidates])
        authors = [(item.author_id or "") if item is not None else "" for item in items]
        known = sorted(set(authors) - {""})
        rows = _NOBODY
        if known:
            rows = joined([self.store.read("author", known, query.now_ms), _NOBODY])
        place = {author_id: row for row, author_id in enumerate(rows.ids)}
        return Hydration(authors=take(rows, [place[author_id] for author_id in authors]))


@dataclass(frozen=True)
class CatalogueItems:
    """What the catalogue says of every candidate; None for one that it does not know."""

    catalogue: LiveCatalogue
    name: str = "catalogue"

    def hydrate(self, query: Query, candidates: tuple[Candidate, ...]) -> Hydration:
        del query
        return Hydration(items=self.catalogue.items([c.video_id for c in candidates]))
