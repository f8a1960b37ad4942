"""The nouns of an answer: Query, Candidate, Pool, Slate.

Knows what passes between the stages of a surface. Does not know the stages
(`serving.stages`), how they are run (`serving.pipeline.runner`), HTTP (`serving.http.app`)
or Kafka (`serving.kafka_requests`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from features.store import FeatureFrame
from streams.contract.events import CatalogueItem

SurfaceName = Literal["feed", "queries", "reactivation"]
SURFACE_NAMES: tuple[SurfaceName, ...] = ("feed", "queries", "reactivation")


@dataclass(frozen=True)
class Release:
    """The set of model versions that one request is answered with."""

    release_id: str = "none"
    models: Mapping[str, int] = field(default_factory=dict)

    def version(self, model: str) -> int | None:
        """The pinned version; None leaves the choice to the server."""
        return self.models.get(model)


@dataclass(frozen=True)
class Query:
    """One request, and what query hydrators have learned of it.

    `seed` makes exploration repeatable; `now_ms` is the stack clock's time at arrival.
    """

    request_id: str
    surface: SurfaceName
    user_id: str
    k: int
    now_ms: int
    seed: int
    video_id: str | None = None
    candidates: tuple[str, ...] = ()  # rank these and nothing else
    release: Release = Release()
    user: FeatureFrame | None = None  # one row
    cold_user: bool = True  # the store does not know the user
    cold_video: bool = False  # the catalogue does not know the video
    stale: bool = False  # some features are the last ones that could be read
    explores: bool = True  # fusion weights may be drawn; False: the policy's mean

    @property
    def cold_start(self) -> bool:
        return self.cold_user or self.cold_video


@dataclass(frozen=True)
class Candidate:
    """One item on its way to the slate. For `queries`, `query` is the thing recommended."""

    video_id: str
    source: str
    query: str | None = None
    score: float = 0.0
    p: Mapping[str, float] = field(default_factory=dict)  # task -> P(action)
    role: str | None = None  # reactivation: the item's role in the trajectory
    p_convert: float | None = None  # reactivation
    goal: str | None = None  # reactivation: the video that the trajectory leads to
    propensity: float = 1.0
    explored: bool = False
    item: CatalogueItem | None = None


@dataclass(frozen=True)
class Scored:
    """A scorer's columns: one row per candidate of the pool it was given."""

    score: np.ndarray  # float32 [C]; NaN ranks below every finite score
    p: np.ndarray  # float32 [C, T]
    tasks: tuple[str, ...] = ()
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # float32 [T]
    rates: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # float32 [T]
    log_density: float | None = None  # of weights that were drawn; None: they are the mean
    user_x: np.ndarray | None = None  # what the model was given: float32 [Fu], history [H],
    history: np.ndarray | None = None  # and of each candidate
    video_x: np.ndarray | None = None  # float32 [C, Fv]


@dataclass(frozen=True)
class Pool:
    """Candidates and their columns. Row i of every column belongs to candidate i."""

    candidates: tuple[Candidate, ...]
    videos: FeatureFrame | None = None
    authors: FeatureFrame | None = None
    scored: Scored | None = None

    def __len__(self) -> int:
        return len(self.candidates)

    def keep(self, rows: Sequence[int]) -> Pool:
        """The pool of these rows, in this order. Scores are dropped: filters come first."""
        return Pool(
            candidates=tuple(self.candidates[row] for row in rows),
            videos=None if self.videos is None else take(self.videos, rows),
            authors=None if self.authors is None else take(self.authors, rows),
        )

    def seen(self, items: Sequence[Candidate]) -> dict[str, np.ndarray] | None:
        """user_x, history and the items' rows of video_x, in their order; None unless a
        model scored them from features."""
        scored = self.scored
        if scored is None or scored.video_x is None:
            return None
        if scored.user_x is None or scored.history is None:
            return None
        row = {candidate.video_id: at for at, candidate in enumerate(self.candidates)}
        rows = [row[item.video_id] for item in items]
        return {
            "user_x": scored.user_x,
            "history": scored.history,
            "video_x": scored.video_x[rows],
        }

    def finished(self, row: int, propensity: float, explored: bool) -> Candidate:
        """Candidate `row` with its scores written out, as it stands in a slate."""
        candidate = replace(
            self.candidates[row], propensity=float(propensity), explored=bool(explored)
        )
        if self.scored is None:
            return candidate
        p = dict(zip(self.scored.tasks, map(float, self.scored.p[row]), strict=True))
        return replace(candidate, score=float(self.scored.score[row]), p=p or candidate.p)


@dataclass(frozen=True)
class Removal:
    video_id: str
    stage: str
    reason: str
    query: str | None = None


@dataclass(frozen=True)
class Fallback:
    """A stage that failed open: what happened and, where one stepped in, what answered."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Slate:
    """The answer: candidates in order, and everything that explains them."""

    query: Query
    items: tuple[Candidate, ...]
    weights: Mapping[str, float]  # task -> the user's fusion weight, on the simplex
    rates: Mapping[str, float]  # task -> its population rate: a weight weighs P(action) over it
    fallbacks: tuple[Fallback, ...]  # stages that failed open, with their reason
    removals: tuple[Removal, ...]
    stage_ms: Mapping[str, float]
    candidates_seen: int = 0  # how many the sources gave
    seen: Mapping[str, np.ndarray] | None = None  # `Pool.seen` of the items
    log_density: float | None = None  # of weights that were drawn; None: they are the mean


def take(frame: FeatureFrame, rows: Sequence[int]) -> FeatureFrame:
    """The frame's rows in the order asked for."""
    index = np.asarray(rows, dtype=np.int64)
    return FeatureFrame(
        entity=frame.entity,
        ids=tuple(frame.ids[row] for row in rows),
        status=frame.status[index],
        last_event_ms=frame.last_event_ms[index],
        columns={name: values[index] for name, values in frame.columns.items()},
    )


def texts(frame: FeatureFrame | None, column: str, row: int = 0) -> list[str]:
    """A last-n column of one row as a list; [] where the frame or column is missing."""
    if frame is None or column not in frame.columns or row >= len(frame):
        return []
    return list(frame.columns[column][row] or [])
