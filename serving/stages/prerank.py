"""The pre-rank: which ~200 of many candidates the ranker is asked about.

Knows the catalogue, the popularity snapshot and who engaged with what together, all in
this process: no feature is read for what is cut. Does not know models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.pipeline.query import Pool, Query
from serving.stages.scorers import PopularTaste, standardised
from serving.stages.sources import lately
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import Snapshot

_TOGETHER = 1.0  # deviations of popularity that one deviation of co-engagement is worth
EXPLORED = "fresh"  # this source's candidates are the exploration's share, never cut


@dataclass(frozen=True)
class TasteTowers:
    """A dot product of a user's and an item's tower.

    The item's: its genres by rarity, its popularity, and what it was engaged with
    together. The user's: the same of the last engagements, newest first.
    """

    catalogue: LiveCatalogue
    snapshot: Snapshot
    activity: Activity
    keep: int = 200
    name: str = "prerank"

    def worth(self, query: Query, pool: Pool) -> np.ndarray:
        """float64 [C]; what explores is worth everything."""
        liking = PopularTaste(self.catalogue, self.snapshot).score(query, pool).score
        worth: np.ndarray = np.nan_to_num(liking.astype(float)) + _TOGETHER * self._together(
            query, pool
        )
        worth[[candidate.source == EXPLORED for candidate in pool.candidates]] = np.inf
        return worth

    def _together(self, query: Query, pool: Pool) -> np.ndarray:
        near: dict[str, float] = {}
        for item, weight in lately(query, self.catalogue):
            for video_id, times in self.activity.neighbours(item.video_id):
                near[video_id] = near.get(video_id, 0.0) + weight * times
        found = [near.get(candidate.video_id, 0.0) for candidate in pool.candidates]
        return standardised(np.log1p(found))
