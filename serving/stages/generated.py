"""Sources that ask a model: queries under a video, and a dormant user's trajectory.

Knows the model client, the models' inputs and what answers when a model does not.
Does not know Triton nor how the models work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.store import FeatureFrame, FeatureStore, StoreDown
from models.client import ModelClient
from models.generation import inputs as generation
from models.reasoning import inputs as reasoning
from serving.monitoring.trace import current_headers
from serving.pipeline.query import Candidate, Query, texts
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import Snapshot, absent, most_frequent

QUERIES, REACTIVATION = "queries", "reactivation"


@dataclass(frozen=True)
class GeneratedQueries:
    """Queries that the model writes under the video, with their log-probabilities."""

    models: ModelClient
    store: FeatureStore
    catalogue: LiveCatalogue
    snapshot: Snapshot
    timeout_s: float = 0.35
    name: str = "generated"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        item = self.catalogue.get(query.video_id or "")
        if item is None:
            return ()
        user = query.user if query.user is not None else absent("user", [query.user_id])
        # Twice as many as asked for, so that exploration has something to draw from.
        video = self._video(item.video_id, query.now_ms)
        tensors = generation.assemble(user, video, item, 2 * query.k, query.now_ms)
        out = _ask(self.models, QUERIES, query, tensors, self.timeout_s)
        pairs = zip(out["query"], out["score"], strict=True)
        return [
            Candidate(item.video_id, self.name, query=_text(text), score=float(score))
            for text, score in pairs
        ]

    def _video(self, video_id: str, now_ms: int) -> FeatureFrame:
        try:
            return self.store.read("video", [video_id], now_ms)
        except StoreDown:
            return self.snapshot.now.rows_of([video_id])


@dataclass(frozen=True)
class ClickedQueries:
    """The queries clicked most often under this video; before any, those of its genres' words."""

    catalogue: LiveCatalogue
    snapshot: Snapshot
    name: str = "clicked"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        clicked = self.snapshot.now.clicked.get(query.video_id or "", [])
        return _ranked(clicked, query, self.name)


@dataclass(frozen=True)
class GenreWords:
    """The words of the video's genres and title: the last word when nobody has clicked."""

    catalogue: LiveCatalogue
    name: str = "genre_words"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        item = self.catalogue.get(query.video_id or "")
        if item is None:
            return ()
        genres = [genre.lower() for genre in item.genres]
        pairs = [f"{first} {second}" for first in genres for second in genres if first < second]
        return _ranked([*genres, *pairs, item.title.lower()], query, self.name)


@dataclass(frozen=True)
class PopularQueries:
    """The queries clicked most often anywhere, else the catalogue's most common genres."""

    catalogue: LiveCatalogue
    snapshot: Snapshot
    name: str = "popular_queries"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        every = [text for found in self.snapshot.now.clicked.values() for text in found]
        genres = [genre.lower() for genre in self.catalogue.index().genre_row]
        return _ranked(most_frequent(every) or genres, query, self.name)


@dataclass(frozen=True)
class Trajectory:
    """The model's path back for a dormant user: each item with its role, toward a goal."""

    models: ModelClient
    timeout_s: float = 0.35
    name: str = "trajectory"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        if query.user is None or not texts(query.user, "engaged_video_id"):
            return ()
        # A few more than asked for: a filter may remove what was taken down meanwhile.
        tensors = reasoning.assemble(query.user, query.k + 4, query.now_ms)
        out = _ask(self.models, REACTIVATION, query, tensors, self.timeout_s)
        goal = _text(out["goal"][0])
        steps = zip(out["video_id"], out["role"], out["p_convert"], strict=True)
        return [
            Candidate(
                _text(video_id),
                self.name,
                score=float(p),
                role=_text(role),
                p_convert=float(p),
                goal=goal,
            )
            for video_id, role, p in steps
        ]


def _ask(
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


def _ranked(values: Sequence[str], query: Query, source: str) -> list[Candidate]:
    """Candidates whose score falls with their place, like a log-probability."""
    chosen = [value for value in dict.fromkeys(values) if value][: 2 * query.k]
    return [
        Candidate(query.video_id or "", source, query=text, score=-float(np.log1p(place)))
        for place, text in enumerate(chosen)
    ]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
