"""Scorers: the score of each candidate for this user.

Knows the served ranker and its fallback. Does not know selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from features.store import FeatureFrame
from models.client import ModelClient
from models.ranking.grade.dirichlet import draw_weights
from models.ranking.tasks import task_names
from models.registry import REGISTRY
from serving.pipeline.frames import absent_rows, list_column
from serving.pipeline.items import CatalogueRows
from serving.pipeline.pool import Pool
from serving.pipeline.query import Query, RankerInputs, Scored
from serving.pipeline.trace import current_headers
from serving.stages.sources import genre_match, recent_engagements
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache

RANKER = "ranker"  # the kind of model
_GENRE_MATCH = 1.5  # a perfect genre match, in standard deviations of popularity


@dataclass(frozen=True)
class Ranker:
    """P(action) per task from the served ranker, fused with the user's own weights.

    drawn_share: the share of exploring queries ranked by weights drawn from the user's
        Dirichlet instead of its mean. The query's seed decides which.
    """

    models: ModelClient
    catalogue: LiveCatalogue
    popularity: PopularityCache
    drawn_share: float = 0.0
    timeout_s: float = 0.35
    model: str = RANKER  # the one of its kind that serves
    name: str = "ranker"

    @property
    def in_memory(self) -> bool:
        """Whether no thread has to guard the call, since the client ends it after `timeout_s`."""
        return getattr(self.models, "ends_calls_in_time", False)

    def score(self, query: Query, pool: Pool) -> Scored:
        tensors = self._tensors(query, pool)
        out = self.models.infer(
            self.model,
            tensors,
            version=query.release.version(self.model),
            timeout_s=self.timeout_s,
            headers=current_headers(),
        )
        share = self.drawn_share if query.explore else 0.0
        drawn = draw_weights(out["alpha"], share, query.seed)
        score, weights = out["score"], out["weights"]
        if drawn is not None:
            weights = drawn.weights
            score = np.asarray((out["p"] / out["rates"]) @ weights, np.float32)
        return Scored(
            score=score,
            p=out["p"],
            tasks=task_names(out.get("tasks")),
            weights=weights,
            rates=out["rates"],
            log_density=None if drawn is None else drawn.log_density,
            inputs=_logged_inputs(tensors),
        )

    def _tensors(self, query: Query, pool: Pool) -> dict[str, np.ndarray]:
        """The model's inputs; last good or absent rows stand in for those that were not read."""
        user = query.user if query.user is not None else absent_rows("user", [query.user_id])
        item_rows, author_rows, items = pool.item_features, pool.author_features, pool.about
        if item_rows is None:
            item_rows = self.popularity.current.rows_of(pool.item_ids)
        if author_rows is None:
            author_rows = absent_rows("author", [""] * len(pool))
        if items is None or (not isinstance(items, CatalogueRows) and None in items):
            raise ValueError("a candidate has no catalogue item")
        assemble = REGISTRY[self.model].load_assemble()
        author_of = self._author_of(user)
        return assemble(user, item_rows, author_rows, items, author_of, query.now_ms)

    def _author_of(self, user: FeatureFrame) -> dict[str, str]:
        """The author of each item in the user's lists, including items taken down since."""
        listed = {*list_column(user, "engaged_video_id"), *list_column(user, "shown_video_id")}
        found = ((item_id, self.catalogue.get(item_id)) for item_id in listed)
        return {item_id: item.author_id or "" for item_id, item in found if item is not None}


def _logged_inputs(tensors: Mapping[str, np.ndarray]) -> RankerInputs | None:
    """What is compared with training's features; None for a ranker of other tensors."""
    names = ("user_x", "history", "video_x")
    return RankerInputs(*(tensors[n] for n in names)) if tensors.keys() >= set(names) else None


@dataclass(frozen=True)
class PopularityGenre:
    """Popularity plus the genre similarity to the user's recent engagements."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    name: str = "popularity"
    in_memory: bool = True

    def score(self, query: Query, pool: Pool) -> Scored:
        index, rows = self.catalogue.index(), pool.rows_in(self.catalogue.table)
        popular, _ = self.popularity.current.by_row(index.numbers)
        score = standardised(popular[rows])
        if len(recent_engagements(query, self.catalogue)):
            similarity = np.append(genre_match(query, self.catalogue), np.float32(0))
            score = score + _GENRE_MATCH * similarity[index.places_of(rows)]
        return Scored(score=score.astype(np.float32), p=np.zeros((len(pool), 0), np.float32))


@dataclass(frozen=True)
class SourceScore:
    """The score that the source gave."""

    name: str = "as_given"
    in_memory: bool = True

    def score(self, query: Query, pool: Pool) -> Scored:
        del query
        score = pool.source_score.astype(np.float32)
        return Scored(score=score, p=np.zeros((len(pool), 0), np.float32))


def standardised(values: np.ndarray) -> np.ndarray:
    """float32: mean 0 and standard deviation 1 over the finite values; NaN stays NaN."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.asarray(values, np.float32)
    spread = float(finite.std())
    return np.asarray((values - finite.mean()) / (spread or 1.0), np.float32)
