"""Sources that ask a model: search queries for an item, and a dormant user's trajectory.

Knows the model client, what each kind of model is asked and answers, and the fallback sources.
Does not know Triton
nor how the models work.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from features.store import FeatureFrame, FeatureStore, StoreDown
from models.client import ModelClient
from models.registry import REGISTRY
from models.signature import text_list
from serving.pipeline.frames import absent_rows, list_column
from serving.pipeline.query import Candidate, Query
from serving.pipeline.trace import current_headers
from serving.state.blocked_queries import BlockedQueries
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache, most_frequent
from streams.contract.events import CatalogueItem

QUERIES, REACTIVATION = "queries", "reactivation"  # kinds of models
_MAX_UNAVAILABLE = 5_000  # bounds a request's size: the newest items
_MAX_PLANS, _PLAN_S = 4, 0.05  # with less time left, no further path is planned


@dataclass(frozen=True)
class GeneratedQueries:
    """Queries that the model writes for the item, best first by their log-probability."""

    models: ModelClient
    store: FeatureStore
    catalogue: LiveCatalogue
    popularity: PopularityCache
    blocked: BlockedQueries
    timeout_s: float = 0.35
    model: str = QUERIES  # the one of its kind that serves
    name: str = "generated"
    spare: int = 2  # times k are asked for, so that exploration has something to draw from

    def fetch(self, query: Query) -> Sequence[Candidate]:
        item = self.catalogue.get(query.item_id or "")
        if item is None:
            return ()
        out = _infer(self.models, self.model, query, self._tensors(query, item), self.timeout_s)
        return self._candidates(item, out)

    def fetch_stream(self, query: Query) -> Generator[Sequence[Candidate], None, None]:
        item = self.catalogue.get(query.item_id or "")
        if item is None:
            return
        parts = self.models.infer_stream(
            self.model,
            self._tensors(query, item),
            version=query.release.version(self.model),
            timeout_s=self.timeout_s,
            headers=current_headers(),
        )
        with closing(parts):
            for part in parts:
                yield self._candidates(item, part)

    def _tensors(self, query: Query, item: CatalogueItem) -> dict[str, np.ndarray]:
        user = query.user if query.user is not None else absent_rows("user", [query.user_id])
        item_row, k = self._item_row(item.video_id, query.now_ms), self.spare * query.k
        assemble = REGISTRY[self.model].load_assemble()
        return assemble(user, item_row, item, k, query.now_ms, blocked=self.blocked.texts())

    def _candidates(self, item: CatalogueItem, out: Mapping[str, np.ndarray]) -> list[Candidate]:
        rows = zip(out["query"], out["score"], out["anchor"], strict=True)
        return [
            Candidate(
                item.video_id,
                self.name,
                query=_decoded(text),
                score=float(score),
                notes={"anchor": bool(anchor)},
            )
            for text, score, anchor in rows
        ]

    def _item_row(self, item_id: str, now_ms: int) -> FeatureFrame:
        try:
            return self.store.read("video", [item_id], now_ms)
        except StoreDown:
            return self.popularity.current.rows_of([item_id])


@dataclass(frozen=True)
class ClickedQueries:
    """The queries clicked most often under the item."""

    popularity: PopularityCache
    blocked: BlockedQueries
    name: str = "clicked"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        clicked = self.popularity.current.clicked.get(query.item_id or "", [])
        return _in_order(clicked, query, self.name, self.blocked)


@dataclass(frozen=True)
class GenreWords:
    """The words of the item's genres and title, for an item without clicked queries."""

    catalogue: LiveCatalogue
    blocked: BlockedQueries
    name: str = "genre_words"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        item = self.catalogue.get(query.item_id or "")
        if item is None:
            return ()
        genres = [genre.lower() for genre in item.genres]
        pairs = [f"{first} {second}" for first in genres for second in genres if first < second]
        return _in_order([*genres, *pairs, item.title.lower()], query, self.name, self.blocked)


@dataclass(frozen=True)
class PopularQueries:
    """The queries clicked most often anywhere, else the catalogue's genres."""

    catalogue: LiveCatalogue
    popularity: PopularityCache
    blocked: BlockedQueries
    name: str = "popular_queries"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        clicked = [text for found in self.popularity.current.clicked.values() for text in found]
        genres = [genre.lower() for genre in self.catalogue.index().genre_names()]
        return _in_order(most_frequent(clicked) or genres, query, self.name, self.blocked)


@dataclass(frozen=True)
class Trajectory:
    """The model's trajectory for a dormant user: a path of items with roles that ends at a goal.

    Items that are taken down are excluded while the model plans. Where a path still has an item
    that may not be shown, it is planned again without that item, so no path has a gap.
    """

    models: ModelClient
    catalogue: LiveCatalogue
    timeout_s: float = 0.35  # of all plans of one request
    model: str = REACTIVATION  # the one of its kind that serves
    name: str = "trajectory"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        if query.user is None or not list_column(query.user, "engaged_video_id"):
            return ()
        unavailable = list(self.catalogue.taken_down()[-_MAX_UNAVAILABLE:])
        deadline_s = time.monotonic() + self.timeout_s
        for _ in range(_MAX_PLANS):
            tensors = REGISTRY[self.model].load_assemble()(
                query.user, query.k, query.now_ms, unavailable=unavailable
            )
            left_s = deadline_s - time.monotonic()
            out = _infer(self.models, self.model, query, tensors, left_s)
            gone = [i for i in text_list(out["video_id"]) if not self.catalogue.available(i)]
            if not gone or time.monotonic() + _PLAN_S > deadline_s:
                break
            unavailable += gone
        return self._steps(out)

    def _steps(self, out: Mapping[str, np.ndarray]) -> list[Candidate]:
        """Notes: role and p_convert of each step; of the whole path its goal, and other_goals, the
        (item, P(convert)) of those that were compared and not taken, best first."""
        goals = zip(text_list(out["counterfactual_goal"]), out["counterfactual_p"], strict=False)
        others = tuple((item, float(p)) for item, p in goals if self.catalogue.available(item))
        of_path = {"goal": _decoded(out["goal"][0]), "other_goals": others}
        steps = zip(out["video_id"], out["role"], out["p_convert"], strict=True)
        return [
            Candidate(
                _decoded(item_id),
                self.name,
                score=float(p),
                notes={"role": _decoded(role), "p_convert": float(p), **of_path},
            )
            for item_id, role, p in steps
        ]


def _infer(
    models: ModelClient,
    model: str,
    query: Query,
    tensors: Mapping[str, np.ndarray],
    timeout_s: float,
) -> dict[str, np.ndarray]:
    version = query.release.version(model)
    return models.infer(
        model, tensors, version=version, timeout_s=timeout_s, headers=current_headers()
    )


def _in_order(
    texts: Sequence[str], query: Query, source: str, blocked: BlockedQueries
) -> list[Candidate]:
    """Candidates scored -log(1 + rank), on the scale of log-probabilities."""
    open_texts = (text for text in dict.fromkeys(texts) if text and not blocked.blocks(text))
    chosen = list(islice(open_texts, 2 * query.k))
    return [
        Candidate(query.item_id or "", source, query=text, score=-float(np.log1p(rank)))
        for rank, text in enumerate(chosen)
    ]


def _decoded(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
