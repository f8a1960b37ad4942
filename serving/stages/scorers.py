"""Scorers: how much each candidate is worth to this user.

Knows the served ranker and what stands in for it. Does not know selection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.store import FeatureFrame
from models.client import ModelClient
from models.ranking.grade.dirichlet import draw
from models.ranking.ple.inputs import TASKS, assemble
from serving.monitoring.trace import current_headers
from serving.pipeline.query import Pool, Query, Scored, texts
from serving.stages.sources import lately
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import Snapshot, absent

RANKER = "ranker"
_TASTE = 1.5  # standard deviations of popularity that a perfect match of genres is worth


@dataclass(frozen=True)
class Ranker:
    """P(action) per task, fused with the user's own weights, from the served ranker.

    drawn_share: of queries that explore, those ranked by weights drawn from the user's own
    Dirichlet instead of its mean; which ones the query's seed decides.
    """

    models: ModelClient
    catalogue: LiveCatalogue
    snapshot: Snapshot
    drawn_share: float = 0.0
    timeout_s: float = 0.35
    name: str = "ranker"

    def score(self, query: Query, pool: Pool) -> Scored:
        tensors = self._tensors(query, pool)
        out = self.models.infer(
            RANKER,
            tensors,
            version=query.release.version(RANKER),
            timeout_s=self.timeout_s,
            headers=current_headers(),
        )
        share = self.drawn_share if query.explores else 0.0
        drawn = draw(out["alpha"], share, query.seed)
        score, weights = out["score"], out["weights"]
        if drawn is not None:
            weights = drawn.weights
            score = np.asarray((out["p"] / out["rates"]) @ weights, np.float32)
        return Scored(
            score=score,
            p=out["p"],
            tasks=tuple(TASKS),
            weights=weights,
            rates=out["rates"],
            log_density=None if drawn is None else drawn.log_density,
            **{name: tensors[name] for name in ("user_x", "history", "video_x")},
        )

    def _tensors(self, query: Query, pool: Pool) -> dict[str, np.ndarray]:
        """What was read; of what was not, the last good rows, and nothing of authors."""
        user = query.user if query.user is not None else absent("user", [query.user_id])
        ids = [candidate.video_id for candidate in pool.candidates]
        videos = pool.videos if pool.videos is not None else self.snapshot.now.rows_of(ids)
        authors = pool.authors if pool.authors is not None else absent("author", [""] * len(ids))
        items = [c.item for c in pool.candidates if c.item is not None]
        if len(items) < len(ids):
            raise ValueError("a candidate has no catalogue item")
        return assemble(user, videos, authors, items, self._author_of(user), query.now_ms)

    def _author_of(self, user: FeatureFrame) -> dict[str, str]:
        """The author of each video in the user's lists, also of those taken down since."""
        listed = {*texts(user, "engaged_video_id"), *texts(user, "shown_video_id")}
        found = ((video_id, self.catalogue.get(video_id)) for video_id in listed)
        return {video_id: item.author_id or "" for video_id, item in found if item is not None}


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
