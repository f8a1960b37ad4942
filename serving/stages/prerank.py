"""The pre-rank: which 200 of many candidates are hydrated and scored.

Knows the catalogue, popularity and co-engagement, all in memory: no feature is read for
a candidate that is cut. Does not know models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.pipeline.query import Pool, Query
from serving.stages.scorers import PopularityGenre, standardised
from serving.stages.sources import co_engagement
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache

_CO_ENGAGEMENT = 1.0  # weight of one standard deviation, in those of popularity
EXPLORED = "fresh"  # this source's candidates serve exploration and are never cut


@dataclass(frozen=True)
class TasteDotProduct:
    """The dot product of a user vector and an item vector; nothing is learned.

    Item: genres weighted by rarity, popularity, and co-engagement. User: the same, summed
    over the recent engagements.
    """

    catalogue: LiveCatalogue
    popularity: PopularityCache
    activity: Activity
    keep: int = 200
    name: str = "prerank"

    def prerank_scores(self, query: Query, pool: Pool) -> np.ndarray:
        """float64 [C]; infinite for candidates that serve exploration."""
        taste = PopularityGenre(self.catalogue, self.popularity).score(query, pool).score
        together = co_engagement(query, self.catalogue, self.activity)
        found = [together.get(candidate.item_id, 0.0) for candidate in pool.candidates]
        scores: np.ndarray = np.nan_to_num(taste.astype(float))
        scores = scores + _CO_ENGAGEMENT * standardised(np.log1p(found))
        scores[[candidate.source == EXPLORED for candidate in pool.candidates]] = np.inf
        return scores
