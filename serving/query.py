"""The nouns of an answer: Query, Candidate, Slate.

Knows what passes between the stages of a surface. Does not know the stages
(`serving.pipeline`), HTTP (`serving.gateway`) or Kafka (`serving.requests_edge`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from features.store import FeatureFrame

SurfaceName = Literal["feed", "queries", "reactivation"]


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
    user: FeatureFrame | None = None  # one row
    cold_start: bool = False


@dataclass(frozen=True)
class Candidate:
    """One item on its way to the slate. For `queries`, `query` is the thing recommended."""

    video_id: str
    source: str
    query: str | None = None
    score: float = 0.0
    p: Mapping[str, float] = field(default_factory=dict)  # task -> P(action)
    role: str | None = None  # reactivation: the item's role in the trajectory
    propensity: float = 1.0
    explored: bool = False


@dataclass(frozen=True)
class Removal:
    video_id: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Slate:
    """The answer: candidates in order, and everything that explains them."""

    query: Query
    items: tuple[Candidate, ...]
    release: str
    weights: Mapping[str, float]  # task -> the user's fusion weight, on the simplex
    fallbacks: tuple[str, ...]  # stages that failed open, with their reason
    removals: tuple[Removal, ...]
    stage_ms: Mapping[str, float]
