"""The pre-rank: which 200 of many candidates are hydrated and scored.

Knows the catalogue, popularity, co-engagement and liking factors, all in memory: no feature is
read for a candidate that is cut. Does not know model servers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from serving.pipeline.pool import Pool
from serving.pipeline.query import Query
from serving.stages.scorers import PopularityGenre, standardised
from serving.stages.sources import co_engagement
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.likings import Likings, UserLiking
from serving.state.popularity import PopularityCache

_CO_ENGAGEMENT = 1.0  # weight of one standard deviation, in those of popularity
EXPLORED = "fresh"  # this source's candidates serve exploration and are never cut


@dataclass(frozen=True)
class TasteDotProduct:
    """The dot product of a user vector and an item vector.

    By the live ranker's liking factors, which are learned. Where an item or the release has
    none, by genres weighted by rarity, popularity and co-engagement, summed over the user's
    recent engagements; nothing is learned then.
    """

    catalogue: LiveCatalogue
    popularity: PopularityCache
    activity: Activity
    likings: Likings = field(default_factory=Likings)
    keep: int = 200
    name: str = "prerank"

    def prerank_scores(self, query: Query, pool: Pool) -> np.ndarray:
        """float64 [C]; infinite for candidates that serve exploration."""
        liking = self.likings.of(query)
        scores = (
            self._by_taste(query, pool) if liking is None else self._by_liking(query, pool, liking)
        )
        scores[pool.from_source(EXPLORED)] = np.inf
        return scores

    def _by_liking(self, query: Query, pool: Pool, liking: UserLiking) -> np.ndarray:
        """By liking, and by taste only where an item has no factors."""
        table = self.catalogue.table
        liked = liking.scores_at(pool.rows_in(table), table.numbers)
        scores, unknown = standardised(liked), np.isnan(liked)
        if unknown.any():
            scores[unknown] = standardised(self._by_taste(query, pool))[unknown]
        return scores

    def _by_taste(self, query: Query, pool: Pool) -> np.ndarray:
        taste = PopularityGenre(self.catalogue, self.popularity).score(query, pool).score
        rows, strength = co_engagement(query, self.catalogue, self.activity)
        own = pool.rows_in(self.catalogue.table)
        place = np.minimum(np.searchsorted(rows, own), max(len(rows) - 1, 0))
        together = np.zeros(len(pool))
        if len(rows):
            together = np.where(rows[place] == own, strength[place], 0.0)
        scores: np.ndarray = np.nan_to_num(taste.astype(float))
        return scores + _CO_ENGAGEMENT * standardised(np.log1p(together))
