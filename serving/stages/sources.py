"""Sources of the feed, and the fallback source of reactivation.

Knows the catalogue, popularity, co-engagement and liking factors. Does not know model servers
(`serving.stages.generated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.pipeline.frames import list_column
from serving.pipeline.query import Candidate, Query
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.likings import Likings
from serving.state.popularity import PopularityCache
from streams.contract.events import CatalogueItem

# How much one engagement says about taste: a play may be accidental, an order is not.
_TASTE_WEIGHT = {"play": 0.5, "long_view": 1.0, "like": 1.5, "share": 1.5, "follow": 1.5}
_TASTE_WEIGHT |= {"cart": 1.5, "order": 2.0}
_RECENCY = 0.85  # weight of an engagement relative to the next newer one
_LAST = 20


def recent_engagements(query: Query, catalogue: LiveCatalogue) -> list[tuple[CatalogueItem, float]]:
    """The user's last engagements that are in the catalogue, newest first, with weights."""
    items = list_column(query.user, "engaged_video_id")
    kinds = list_column(query.user, "engaged_kind")
    found: list[tuple[CatalogueItem, float]] = []
    for step, (item_id, kind) in enumerate(zip(items[:_LAST], kinds, strict=False)):
        item = catalogue.get(item_id)
        if item is not None:
            found.append((item, _TASTE_WEIGHT.get(kind, 0.5) * _RECENCY**step))
    return found


@dataclass(frozen=True)
class ProvidedCandidates:
    """The candidates that the request lists."""

    name: str = "given"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        return [Candidate(item_id, self.name) for item_id in query.candidates or ()]


@dataclass(frozen=True)
class Popular:
    """The most popular items; catalogue order while there is no popularity yet."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    limit: int = 120
    skip_engaged: bool = False  # leave out what the user has engaged with
    name: str = "popular"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        index, popularity = self.catalogue.index(), self.popularity.current
        scores = popularity.scores_of(index.ids)
        order = np.argsort(-scores, kind="stable")
        skip = set(list_column(query.user, "engaged_video_id")) if self.skip_engaged else set()
        chosen = [row for row in order.tolist() if index.ids[row] not in skip][: self.limit]
        return [Candidate(index.ids[row], self.name, score=float(scores[row])) for row in chosen]


@dataclass(frozen=True)
class Liked:
    """The items with the best liking and popularity for the user, by the live ranker's factors."""

    likings: Likings
    activity: Activity
    limit: int = 150
    name: str = "liked"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        liking = self.likings.of(query)
        if liking is None:
            return ()
        engaged = {*list_column(query.user, "engaged_video_id")}
        engaged |= self.activity.engaged(query.user_id).keys()
        best = liking.best(self.limit, engaged)
        return [Candidate(item_id, self.name, score=score) for item_id, score in best]


@dataclass(frozen=True)
class GenreSimilar:
    """Items that share genres with the user's recent engagements."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    limit: int = 100
    name: str = "genres"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        history = recent_engagements(query, self.catalogue)
        if not history:
            return ()
        index = self.catalogue.index()
        similarity = index.similarity(index.vector(history))
        score = similarity + 0.05 * self.popularity.current.scores_of(index.ids)
        order = np.argsort(-score, kind="stable")
        return [Candidate(index.ids[row], self.name) for row in order[: self.limit]]


@dataclass(frozen=True)
class Neighbours:
    """Items that other users engaged with beside this user's recent engagements."""

    catalogue: LiveCatalogue
    activity: Activity
    limit: int = 80
    name: str = "neighbours"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        scores = co_engagement(query, self.catalogue, self.activity)
        best = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))
        return [Candidate(item_id, self.name) for item_id in best[: self.limit]]


def co_engagement(query: Query, catalogue: LiveCatalogue, activity: Activity) -> dict[str, float]:
    """Item -> how strongly it is engaged with beside the user's recent engagements."""
    scores: dict[str, float] = {}
    for item, weight in recent_engagements(query, catalogue):
        for item_id, strength in activity.neighbours(item.video_id):
            scores[item_id] = scores.get(item_id, 0.0) + weight * strength
    return scores


@dataclass(frozen=True)
class Fresh:
    """A seeded sample of the newest items among those shown fewer than `shown_below` times."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    limit: int = 20
    shown_below: int = 30
    name: str = "fresh"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        index, popularity = self.catalogue.index(), self.popularity.current
        shown = np.append(popularity.shown, 0)
        rows = [popularity.row.get(item_id, -1) for item_id in index.ids]
        rarely_shown = np.flatnonzero(shown[rows] < self.shown_below)
        newest_first = np.argsort(-index.created_ms[rarely_shown], kind="stable")
        newest = rarely_shown[newest_first][: 10 * self.limit]
        drawn = np.random.default_rng(query.seed).permutation(newest)[: self.limit]
        return [Candidate(index.ids[row], self.name) for row in drawn]
