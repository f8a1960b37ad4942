"""Sources of the feed and the fallback of reactivation: where candidates come from.

Knows the catalogue, the popularity snapshot and who engaged with what together. Does
not know models (`serving.stages.generated`) nor scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.pipeline.query import Candidate, Query, texts
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.last_rows import Snapshot
from streams.contract.events import CatalogueItem

# How much one engagement says about taste; a play may be an accident, an order is not.
_TASTE_WEIGHT = {"play": 0.5, "long_view": 1.0, "like": 1.5, "share": 1.5, "follow": 1.5}
_TASTE_WEIGHT |= {"cart": 1.5, "order": 2.0}
_RECENCY = 0.85  # each step back in the history counts this share of the one before
_LAST = 20


def lately(query: Query, catalogue: LiveCatalogue) -> list[tuple[CatalogueItem, float]]:
    """The user's last engagements that are in the catalogue, newest first, with weights."""
    videos, kinds = texts(query.user, "engaged_video_id"), texts(query.user, "engaged_kind")
    found: list[tuple[CatalogueItem, float]] = []
    for step, (video_id, kind) in enumerate(zip(videos[:_LAST], kinds, strict=False)):
        item = catalogue.get(video_id)
        if item is not None:
            found.append((item, _TASTE_WEIGHT.get(kind, 0.5) * _RECENCY**step))
    return found


@dataclass(frozen=True)
class Given:
    """The caller named the candidates."""

    name: str = "given"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        return [Candidate(video_id, self.name) for video_id in query.candidates]


@dataclass(frozen=True)
class Popular:
    """The most popular videos of the last good snapshot; the catalogue's own order before one."""

    catalogue: LiveCatalogue
    snapshot: Snapshot
    limit: int = 120
    unseen: bool = False  # leave out what the user has engaged with
    name: str = "popular"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        index, popularity = self.catalogue.index(), self.snapshot.now
        order = np.argsort(-popularity.of(index.ids), kind="stable")
        seen = set(texts(query.user, "engaged_video_id")) if self.unseen else set()
        ids = (index.ids[row] for row in order)
        chosen = [video_id for video_id in ids if video_id not in seen]
        return [Candidate(video_id, self.name) for video_id in chosen[: self.limit]]


@dataclass(frozen=True)
class Near:
    """Videos that share genres with what the user engaged with lately."""

    catalogue: LiveCatalogue
    snapshot: Snapshot
    limit: int = 100
    name: str = "genres"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        history = lately(query, self.catalogue)
        if not history:
            return ()
        index = self.catalogue.index()
        likeness = index.likeness(index.vector(history))
        worth = likeness + 0.05 * self.snapshot.now.of(index.ids)
        order = np.argsort(-worth, kind="stable")
        return [Candidate(index.ids[row], self.name) for row in order[: self.limit]]


@dataclass(frozen=True)
class Neighbours:
    """Videos that others engaged with beside what this user engaged with lately."""

    catalogue: LiveCatalogue
    activity: Activity
    limit: int = 80
    name: str = "neighbours"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        worth: dict[str, float] = {}
        for item, weight in lately(query, self.catalogue):
            for video_id, together in self.activity.neighbours(item.video_id):
                worth[video_id] = worth.get(video_id, 0.0) + weight * together
        best = sorted(worth, key=lambda video_id: (-worth[video_id], video_id))
        return [Candidate(video_id, self.name) for video_id in best[: self.limit]]


@dataclass(frozen=True)
class Fresh:
    """New videos that few have been shown: the newest first, a seeded draw among them."""

    catalogue: LiveCatalogue
    snapshot: Snapshot
    limit: int = 20
    shown_below: int = 30
    name: str = "fresh"

    def fetch(self, query: Query) -> Sequence[Candidate]:
        index, popularity = self.catalogue.index(), self.snapshot.now
        shown = np.append(popularity.shown, 0)
        rows = [popularity.row.get(video_id, -1) for video_id in index.ids]
        young = np.flatnonzero(shown[rows] < self.shown_below)
        newest = young[np.argsort(-index.created_ms[young], kind="stable")][: 10 * self.limit]
        drawn = np.random.default_rng(query.seed).permutation(newest)[: self.limit]
        return [Candidate(index.ids[row], self.name) for row in drawn]
