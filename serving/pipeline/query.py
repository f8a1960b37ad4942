"""The nouns of a reply: Query, Candidate, Slate.

Knows what passes between the stages of a surface; the candidates on their way are a
`serving.pipeline.pool.Pool`. Does not know the stages
(`serving.stages`), how they are run (`serving.pipeline.runner`), HTTP (`serving.http.app`)
or Kafka (`serving.kafka_requests`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np

from features.rows.attributes import UserAttributes, user_attributes
from features.store import FeatureFrame
from serving.pipeline.requests import Request, RequestContext
from streams.contract.events import CatalogueItem

T = TypeVar("T")
RULES = "rules"  # the source and the filter by which rules act

if TYPE_CHECKING:
    from serving.pipeline.pool import Pool
    from serving.pipeline.removals import Removals


@dataclass(frozen=True)
class Release:
    """The set of model versions that answers one request."""

    release_id: str = "none"
    models: Mapping[str, int] = field(default_factory=dict)

    def version(self, model: str) -> int | None:
        """The pinned version; None lets the model server choose."""
        return self.models.get(model)


@dataclass(frozen=True)
class Query:
    """One request, with the fields that query hydrators have filled in.

    `seed` makes exploration repeatable; `now_ms` is the clock's time at arrival. `request_id` is
    the caller's; `slate_id` is made here, so that impressions of two slates never share an id.
    """

    request_id: str
    surface: str
    user_id: str
    k: int
    now_ms: int
    seed: int
    item_id: str | None = None  # that the request is about, such as the one that is playing
    candidates: tuple[str, ...] | None = None  # rank only these; None: the sources choose
    release: Release = Release()
    user: FeatureFrame | None = None  # one row
    cold_user: bool = True  # the store has no row of the user
    cold_item: bool = False  # `item_id` is not in the catalogue
    stale: bool = False  # some features are last good values, not read for this request
    explore: bool = True  # fusion weights may be drawn; False: the policy's mean
    arm: str | None = None  # of the experiment (`serving.pipeline.arms`)
    experiment: str | None = None
    context: RequestContext = field(default_factory=RequestContext)  # where it will be shown
    request: Request | None = None  # for stages that read fields of their own surface
    slate_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    memo: dict[str, tuple[FeatureFrame | None, Any]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def cold_start(self) -> bool:
        return self.cold_user or self.cold_item

    @cached_property
    def user_attributes(self) -> UserAttributes:
        """What the owner has stated of the user, by name; read with the user's row."""
        return user_attributes(self.user)

    @property
    def rule_notes(self) -> RuleNotes:
        """Filled in by the stages of rules."""
        return self.once("rule_notes", RuleNotes)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` returns for this query and its user's row; later stages get the same."""
        kept = self.memo.get(name)
        if kept is None or kept[0] is not self.user:
            kept = self.memo[name] = self.user, compute()
        found: T = kept[1]
        return found


class Boosted(NamedTuple):
    """An item of the slate whose score a rule changed. strength: in standard deviations."""

    item_id: str
    rule: str
    strength: float


@dataclass
class RuleNotes:
    """What rules did to one slate. unmet: rule -> why it could not be kept."""

    boosted: list[Boosted] = field(default_factory=list)
    unmet: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One item considered for the slate. Where `query` is set, that is what is recommended.

    notes: what its source says of it. The reply shows those that the surface's reply declares.
    placed: the rule that chose it for its slot, or restricted the choice to some candidates.
    """

    item_id: str
    source: str
    query: str | None = None
    score: float = 0.0
    p: Mapping[str, float] = field(default_factory=dict)  # task -> P(action)
    notes: Mapping[str, Any] = field(default_factory=dict)
    propensity: float = 1.0
    explored: bool = False
    item: CatalogueItem | None = None
    placed: str | None = None
    team: Literal["a", "b"] | None = None  # that picked it for an interleaved slate, and
    release: str | None = None  # that team's; None: the query's


@dataclass(frozen=True)
class RankerInputs:
    """The features a ranker scored: one user and one row of `item_x` per item."""

    user_x: np.ndarray  # float32 [Fu]
    history: np.ndarray  # int64 [H]
    item_x: np.ndarray  # float32 [C, Fv]


@dataclass(frozen=True)
class Scored:
    """A scorer's columns: one row per candidate of its pool."""

    score: np.ndarray  # float32 [C]; NaN ranks below every finite score
    p: np.ndarray  # float32 [C, T]
    tasks: tuple[str, ...] = ()
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # float32 [T]
    rates: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # float32 [T]
    log_density: float | None = None  # of drawn weights; None: the weights are the mean
    inputs: RankerInputs | None = None  # None: not scored by a model


class Removal(NamedTuple):
    """A candidate that a stage removed, and why."""

    item_id: str
    stage: str
    reason: str
    query: str | None = None


@dataclass(frozen=True)
class Fallback:
    """A stage that failed open: the failure, or which fallback answered in its place."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Slate:
    """The ranked items of one reply, and what explains them."""

    query: Query
    items: tuple[Candidate, ...]
    weights: Mapping[str, float]  # task -> the user's fusion weight, on the simplex
    rates: Mapping[str, float]  # task -> population rate, which divides P(action) in the score
    fallbacks: tuple[Fallback, ...]
    removals: Removals
    stage_ms: Mapping[str, float]
    candidate_count: int = 0  # how many the sources returned
    ranker_inputs: RankerInputs | None = None  # of `items`
    broken: str | None = (
        None  # why a stream of candidates ended early (`serving.pipeline.streamed`)
    )
    log_density: float | None = None  # of drawn weights; None: the weights are the mean
    pool: Pool | None = None  # that one selector chose from, with its scores
