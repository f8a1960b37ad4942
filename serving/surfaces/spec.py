"""What one surface is made of, and what its stages are built from.

Knows the parts of a surface. Does not know any one surface: those are the modules beside this
one, and `serving.registry` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from features.store import FeatureStore
from models.client import ModelClient
from models.experiments.store import ExperimentStore
from serving.pipeline.query import Query, Slate
from serving.pipeline.reply import ItemLookup, Reply, items_of, own_item_fields, to_reply
from serving.pipeline.requests import Request
from serving.pipeline.runner import Deadlines, Pipeline
from serving.pipeline.stage import CandidateHydrator
from serving.rules.columns import ItemColumns
from serving.rules.definitions import KINDS, Kind
from serving.stages.acting_rules import RuleReader
from serving.stages.caps import Cap
from serving.stages.hydrators import AuthorFeatures, CatalogueItems, ItemFeatures
from serving.state.activity import Activity
from serving.state.blocked_queries import BlockedQueries
from serving.state.catalogue import LiveCatalogue
from serving.state.feature_rows import FeatureRows
from serving.state.last_rows import LastUserRows
from serving.state.likings import Likings
from serving.state.popularity import PopularityCache
from serving.state.rule_book import RuleBook
from streams.contract.clock import Clock


@dataclass(frozen=True)
class StageDependencies:
    """What stages are built from."""

    store: FeatureStore
    models: ModelClient
    catalogue: LiveCatalogue
    popularity: PopularityCache
    clock: Clock
    activity: Activity = field(default_factory=Activity)
    last_users: LastUserRows = field(default_factory=LastUserRows)
    deadlines: Deadlines = field(default_factory=Deadlines)
    blocked: BlockedQueries = field(default_factory=BlockedQueries)
    rules: RuleBook = field(default_factory=RuleBook)
    caps: tuple[Cap, ...] = ()  # of the feed; none by default
    drawn_share: float = 0.0  # share of feed replies ranked by drawn fusion weights
    fresh_share: float = 0.03  # share of the feed's slots that explore fresh items
    temperature: float = 0.05  # of the feed's draw by score
    experiments: ExperimentStore = field(default_factory=ExperimentStore)
    likings: Likings = field(default_factory=Likings)
    serving_models: Mapping[str, str] = field(default_factory=dict)  # kind -> model, where chosen

    def model_of(self, kind: str) -> str:
        """The model that serves among those of a kind; by default the one of the kind's name."""
        return self.serving_models.get(kind, kind)

    @cached_property
    def item_rows(self) -> FeatureRows:
        """Item features that all pipelines share."""
        return FeatureRows(self.store, "video", self.catalogue.table.numbers)

    @cached_property
    def rule_reader(self) -> RuleReader:
        """What all pipelines read of rules and of items under rules."""
        return RuleReader(self.rules, ItemColumns(self.catalogue.table), self.catalogue)

    @cached_property
    def author_rows(self) -> FeatureRows:
        """Author features that all pipelines share."""
        return FeatureRows(self.store, "author", self.catalogue.table.authors)


def ranker_hydrators(deps: StageDependencies) -> list[CandidateHydrator]:
    """Everything that a ranker reads of a candidate."""
    return [
        CatalogueItems(deps.catalogue),
        ItemFeatures(deps.item_rows, deps.store, deps.catalogue),
        AuthorFeatures(deps.author_rows, deps.catalogue),
    ]


BuildPipeline = Callable[[StageDependencies], Pipeline]


def _no_fields(_slate: Slate, _catalogue: ItemLookup) -> dict[str, Any]:
    return {}


def _one_pipeline(_query: Query) -> str:
    return ""


@dataclass(frozen=True)
class SurfaceSpec:
    """All that is particular to one surface.

    Its route, its requests over Kafka, `tidemill ask`, its metrics, its fake and the check that
    it answers derive from this.

    request: its fields; `surface` has the surface's name as the only value.
    pipeline: the stages that answer it.
    canary: a request about an item of the catalogue, sent now and then to see that it answers.
    reply: the fields of its reply. What its items have beside `Item`'s comes from candidates'
        notes; `own_fields` makes those that the reply itself has beside `Reply`'s.
    variants, choose: other pipelines by name, and which of them answers a query; "" is `pipeline`.
        A variant `popularity` makes the holdout and arms of popularity possible: `choose` reads the
        query's `arm`. interleaves: two policies may share a slate.
    streams: its reply is also given as server-sent events, each item as soon as it is decided
        (`serving.pipeline.streamed`).
    rule_kinds: the kinds of rules that act on it (`serving.rules.definitions.KINDS`); a boost acts
        where a selector draws by scores.
    panel: the title of the panel that the page draws for it; None where the page has its own
        place for it, or none.
    """

    request: type[Request]
    pipeline: BuildPipeline
    canary: Callable[[str], Request]
    reply: type[Reply] = Reply
    own_fields: Callable[[Slate, ItemLookup], dict[str, Any]] = _no_fields
    variants: Mapping[str, BuildPipeline] = field(default_factory=dict)
    choose: Callable[[Query], str] = _one_pipeline
    interleaves: bool = False
    streams: bool = False
    rule_kinds: Sequence[Kind] = tuple(kind for kind in KINDS if kind != "boost")
    panel: str | None = None

    @property
    def name(self) -> str:
        return str(self.request.model_fields["surface"].default)

    @property
    def about(self) -> str:
        """What it answers, in one sentence."""
        return (self.pipeline.__doc__ or "").strip().partition("\n")[0]

    def to_items(self, slate: Slate, key: bytes, first: int = 0) -> list[dict[str, Any]]:
        """The reply's items from slot `first` on."""
        return items_of(slate, key, own_item_fields(self.reply), first)

    def to_reply(self, slate: Slate, key: bytes, catalogue: ItemLookup) -> dict[str, Any]:
        """The reply as plain JSON. `key` signs the impression tokens."""
        reply = to_reply(slate, key, own_item_fields(self.reply))
        return reply | self.own_fields(slate, catalogue)
