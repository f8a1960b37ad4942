"""Scorers: how much each candidate is worth to this user.

Knows the served ranker and what stands in for it. Does not know selection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.client import ModelClient
from models.ranking.inputs import TASKS, assemble
from serving.catalogue import LiveCatalogue
from serving.fallback import Snapshot, absent
from serving.query import Pool, Query, Scored
from serving.stages.sources import lately
from serving.trace import current_headers

RANKER = "ranker"
_TASTE = 1.5  # standard deviations of popularity that a perfect match of genres is worth


@dataclass(frozen=True)
class Ranker:
    """P(action) per task, fused with the user's own weights, from the served ranker."""

    models: ModelClient
    snapshot: Snapshot
    timeout_s: float = 0.35
    name: str = "ranker"

    def score(self, query: Query, pool: Pool) -> Scored:
        user = query.user if query.user is not None else absent("user", [query.user_id])
        ids = [candidate.video_id for candidate in pool.candidates]
        videos = pool.videos if pool.videos is not None else self.snapshot.now.rows_of(ids)
        items = [candidate.item for candidate in pool.candidates]
        if None in items:
            raise ValueError("a candidate has no catalogue item")
        tensors = assemble(user, videos, [i for i in items if i is not None], query.now_ms)
        out = self.models.infer(
            RANKER,
            tensors,
            version=query.release.version(RANKER),
            timeout_s=self.timeout_s,
            headers=current_headers(),
        )
        return Scored(
            score=out["score"],
            p=out["p"],
            tasks=tuple(TASKS),
            weights=out["weights"],
            rates=out["rates"],
            **{name: tensors[name] for name in ("user_x", "history", "video_x")},
        )


@dataclass(frozen=True)
class PopularTaste:
    """The last good popularity, and how near a video's genres lie to what the user liked lately."""

    catalogue: LiveCatalogue
    snapshot: Snapshot
    name: str = "popularity"

    def score(self, query: Query, pool: Pool) -> Scored:
        ids = [candidate.video_id for candidate in pool.candidates]
        score = standardised(self.snapshot.now.of(ids))
        history = lately(query, self.catalogue)
        if history:
            index = self.catalogue.index()
            likeness = np.append(index.likeness(index.vector(history)), np.float32(0))
            score = score + _TASTE * likeness[[index.row.get(video_id, -1) for video_id in ids]]
        return Scored(score=score.astype(np.float32), p=np.zeros((len(pool), 0), np.float32))


@dataclass(frozen=True)
class AsGiven:
    """The source's own score."""

    name: str = "as_given"

    def score(self, query: Query, pool: Pool) -> Scored:
        del query
        score = np.array([candidate.score for candidate in pool.candidates], np.float32)
        return Scored(score=score, p=np.zeros((len(pool), 0), np.float32))


def standardised(values: np.ndarray) -> np.ndarray:
    """float32: mean 0 and standard deviation 1 over the finite values; NaN stays NaN."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.asarray(values, np.float32)
    spread = float(finite.std())
    return np.asarray((values - finite.mean()) / (spread or 1.0), np.float32)
