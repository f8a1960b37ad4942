"""Sources of the feed, and the fallback source of reactivation.

Knows the catalogue, popularity, co-engagement and liking factors, all in memory, and returns rows
of the catalogue's table. Does not know model servers (`serving.stages.generated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.pipeline.frames import list_column
from serving.pipeline.items import best_places
from serving.pipeline.pool import CandidateRows
from serving.pipeline.query import Candidate, Query
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.likings import Likings
from serving.state.popularity import PopularityCache
from streams.contract.declaration import contract

# How much one engagement says about taste: a play may be accidental, an order is not. A declared
# signal says as much as the kind that it counts as (`Signals.stand_ins`).
_TASTE_WEIGHT = {"play": 0.5, "long_view": 1.0, "like": 1.5, "share": 1.5, "follow": 1.5}
_TASTE_WEIGHT |= {"cart": 1.5, "order": 2.0}
_RECENCY = 0.85  # weight of an engagement relative to the next newer one
_LAST = 20


@dataclass(frozen=True)
class Engagements:
    """A user's last engagements with items of the catalogue, newest first."""

    rows: np.ndarray  # int64 [E], of the catalogue's table
    weights: np.ndarray  # float64 [E]: what each says about taste

    def __len__(self) -> int:
        return len(self.rows)


def recent_engagements(query: Query, catalogue: LiveCatalogue) -> Engagements:
    """The user's last engagements that are in the catalogue; computed once for a query."""
    return query.once("engagements", lambda: _recent_engagements(query, catalogue))


def _recent_engagements(query: Query, catalogue: LiveCatalogue) -> Engagements:
    items = list_column(query.user, "engaged_video_id")[:_LAST]
    kinds = list_column(query.user, "engaged_kind")
    counts_as = contract().signals.stand_ins
    found = [
        (item_id, _TASTE_WEIGHT.get(counts_as.get(kind, kind), 0.5) * _RECENCY**step)
        for step, (item_id, kind) in enumerate(zip(items, kinds, strict=False))
        if catalogue.get(item_id) is not None
    ]
    rows = catalogue.table.numbers.add(item_id for item_id, _ in found)
    return Engagements(rows, np.array([weight for _, weight in found]))


def engaged_rows(query: Query, catalogue: LiveCatalogue) -> np.ndarray:
    """int64: rows of the items in the user's list of engagements."""
    rows = catalogue.index().numbers.rows_of(list_column(query.user, "engaged_video_id"))
    return np.asarray(rows[rows >= 0])


@dataclass(frozen=True)
class ProvidedCandidates:
    """The candidates that the request lists."""

    catalogue: LiveCatalogue
    name: str = "given"
    in_memory: bool = True

    def fetch(self, query: Query) -> Sequence[Candidate]:
        rows = self.catalogue.index().numbers.rows_of(query.candidates or ())
        if len(rows) and rows.min() >= 0:
            return CandidateRows(self.catalogue.table, rows, self.name)
        return [Candidate(item_id, self.name) for item_id in query.candidates or ()]


@dataclass(frozen=True)
class Popular:
    """The most popular items; catalogue order while there is no popularity yet."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    limit: int = 120
    skip_engaged: bool = False  # leave out what the user has engaged with
    name: str = "popular"
    in_memory: bool = True

    def fetch(self, query: Query) -> Sequence[Candidate]:
        index, popularity = self.catalogue.index(), self.popularity.current
        skip = np.zeros(0, np.int64)
        if self.skip_engaged:
            skip = engaged_rows(query, self.catalogue)
        order = popularity.order_in(index, self.limit + len(skip))
        if len(skip):
            order = order[~index.numbers.among(order, skip)]
        rows = order[: self.limit]
        scores, _ = popularity.by_row(index.numbers)
        return CandidateRows(self.catalogue.table, rows, self.name, scores[rows])


@dataclass(frozen=True)
class Liked:
    """The items with the best liking and popularity for the user, by the live ranker's factors."""

    likings: Likings
    activity: Activity
    catalogue: LiveCatalogue
    limit: int = 150
    name: str = "liked"
    in_memory: bool = True

    def fetch(self, query: Query) -> Sequence[Candidate]:
        liking = self.likings.of(query)
        if liking is None:
            return ()
        numbers = self.catalogue.index().numbers
        liking.places.rows_in(numbers)  # so that engaged items have rows
        engaged = self.activity.engaged(query.user_id)
        engaged |= dict.fromkeys(list_column(query.user, "engaged_video_id"), 0)
        skip = numbers.rows_of(engaged)
        rows, scores = liking.best_rows(self.limit, skip[skip >= 0], numbers)
        return CandidateRows(self.catalogue.table, rows, self.name, scores)


@dataclass(frozen=True)
class GenreSimilar:
    """Items that share genres with the user's recent engagements."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    limit: int = 100
    name: str = "genres"
    in_memory: bool = True

    def fetch(self, query: Query) -> Sequence[Candidate]:
        history = recent_engagements(query, self.catalogue)
        if not len(history):
            return ()
        index = self.catalogue.index()
        similarity = genre_match(query, self.catalogue)
        popular, _ = self.popularity.current.by_row(index.numbers)
        score = similarity + 0.05 * popular[index.rows]
        best = index.rows[best_places(score, self.limit)]
        return CandidateRows(self.catalogue.table, best, self.name)


def genre_match(query: Query, catalogue: LiveCatalogue) -> np.ndarray:
    """float32 [N]: how much each available item's genres are like those that the user engages
    with, in the order of the catalogue's index; computed once for a query and an index."""
    index, history = catalogue.index(), recent_engagements(query, catalogue)
    return query.once(
        f"genres {index.version}",
        lambda: index.similarity(index.vector_of(history.rows, history.weights)),
    )


@dataclass(frozen=True)
class Neighbours:
    """Items that other users engaged with beside this user's recent engagements."""

    catalogue: LiveCatalogue
    activity: Activity
    limit: int = 80
    name: str = "neighbours"
    in_memory: bool = True

    def fetch(self, query: Query) -> Sequence[Candidate]:
        rows, scores = co_engagement(query, self.catalogue, self.activity)
        best = rows[best_places(scores, self.limit)]
        return CandidateRows(self.catalogue.table, best, self.name)


def co_engagement(
    query: Query, catalogue: LiveCatalogue, activity: Activity
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (int64, ascending) and how strongly each item is engaged with beside the user's recent
    engagements (float64); computed once for a query."""
    return query.once("co-engagement", lambda: _co_engagement(query, catalogue, activity))


def _co_engagement(
    query: Query, catalogue: LiveCatalogue, activity: Activity
) -> tuple[np.ndarray, np.ndarray]:
    history, numbers = recent_engagements(query, catalogue), catalogue.index().numbers
    found = [activity.neighbour_rows(each, numbers) for each in numbers.ids_of(history.rows)]
    if not found:
        return np.zeros(0, np.int64), np.zeros(0)
    strengths = [weight * own for weight, (_, own) in zip(history.weights, found, strict=True)]
    rows, place = np.unique(np.concatenate([rows for rows, _ in found]), return_inverse=True)
    return rows, np.bincount(place, np.concatenate(strengths), len(rows))


@dataclass(frozen=True)
class Fresh:
    """A seeded sample of the newest items among those shown fewer than `shown_below` times."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    limit: int = 20
    shown_below: int = 30
    name: str = "fresh"
    in_memory: bool = True

    def fetch(self, query: Query) -> Sequence[Candidate]:
        index = self.catalogue.index()
        popularity = self.popularity.current
        newest = popularity.newest_rarely_shown(index, self.shown_below, 10 * self.limit)
        drawn = np.random.default_rng(query.seed).permutation(newest)[: self.limit]
        return CandidateRows(self.catalogue.table, drawn, self.name)
