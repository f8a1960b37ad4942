"""The event contract: what a producer may say, as one discriminated union.

Knows field names and which type each has; `streams.contract.bounds` states the bounds. Does not
know time limits (admission decides late, future and ancient) nor how events are carried (`streams.contract.schema`, `streams.bus.contract`).

A producer writes one JSON object to the topic `behaviour`, or one Protobuf message with the
header for it (`streams.codec.content_type`). Unknown fields are ignored, so a newer producer can
write to an older platform; an unknown `kind` is a dead letter. A null means an absent field.
`streams.codec.json` derives its tables from these models, and tests compare its columns with
pydantic's result.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from streams.contract.bounds import (
    MAX_GENRES,
    AmountCents,
    DurationMs,
    DwellMs,
    Genre,
    Id,
    ImpressionToken,
    OptionalTimeMs,
    PriceCents,
    QueryText,
    TimeMs,
    Title,
)

Surface = Literal["feed", "queries", "reactivation", "search", "external"]
Provenance = Literal["human", "aigc"]
Origin = Literal["live", "replayed", "simulated"]


class _Event(BaseModel):
    """Fields that every event carries. Times are milliseconds since 1970."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event_id: Id
    user_id: Id
    event_time_ms: TimeMs
    surface: Surface = "external"
    origin: Origin = "live"
    request_id: Id | None = None
    impression: ImpressionToken | None = None
    """The signed token of the impression that this event answers (`streams.contract.impression`)."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class _ItemEvent(_Event):
    video_id: Id
    author_id: Id | None = None
    provenance: Provenance = "human"


class Shown(_ItemEvent):
    """An item was on screen, as reported by the client: a served item may stay unseen."""

    kind: Literal["shown"] = "shown"


class Skip(_ItemEvent):
    kind: Literal["skip"] = "skip"
    dwell_ms: DwellMs = 0


class Play(_ItemEvent):
    kind: Literal["play"] = "play"
    dwell_ms: DwellMs = 0


class LongView(_ItemEvent):
    kind: Literal["long_view"] = "long_view"
    dwell_ms: DwellMs = 0


class Like(_ItemEvent):
    kind: Literal["like"] = "like"


class Share(_ItemEvent):
    kind: Literal["share"] = "share"


class Follow(_ItemEvent):
    """The user follows the item's author."""

    kind: Literal["follow"] = "follow"


class QueryShown(_ItemEvent):
    """A query was suggested under an item."""

    kind: Literal["query_shown"] = "query_shown"
    query: QueryText


class QueryClick(_ItemEvent):
    kind: Literal["query_click"] = "query_click"
    query: QueryText


class Search(_Event):
    kind: Literal["search"] = "search"
    query: QueryText


class Cart(_ItemEvent):
    kind: Literal["cart"] = "cart"
    amount_cents: AmountCents = 0


class Order(_ItemEvent):
    kind: Literal["order"] = "order"
    amount_cents: AmountCents = 0


Event = Annotated[
    Shown
    | Skip
    | Play
    | LongView
    | Like
    | Share
    | Follow
    | QueryShown
    | QueryClick
    | Search
    | Cart
    | Order,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)

EVENT_MODELS: dict[str, type[BaseModel]] = {
    model.model_fields["kind"].default: model for model in get_args(get_args(Event)[0])
}
"""Kind -> its model."""

# A kind's index is part of the wire format of the internal batches: append, never reorder.
KINDS: tuple[str, ...] = tuple(EVENT_MODELS)
KIND_CODE: dict[str, int] = {kind: code for code, kind in enumerate(KINDS)}

LITERAL_VALUES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "surface": get_args(Surface),
    "origin": get_args(Origin),
    "provenance": get_args(Provenance),
}
"""Every field with a closed set of values."""


class CatalogueItem(BaseModel):
    """An item's description, as its owner states it. Topic `catalogue`, key video_id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    video_id: Id
    title: Title
    genres: Annotated[tuple[Genre, ...], Field(max_length=MAX_GENRES)] = ()
    author_id: Id | None = None
    duration_ms: DurationMs = 0
    price_cents: PriceCents = 0
    provenance: Provenance = "human"
    created_ms: OptionalTimeMs = 0  # 0: not stated


class ItemAdded(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: Literal["item_added"] = "item_added"
    event_id: Id
    event_time_ms: TimeMs
    item: CatalogueItem


class ItemChanged(BaseModel):
    """Replaces every field of the item."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: Literal["item_changed"] = "item_changed"
    event_id: Id
    event_time_ms: TimeMs
    item: CatalogueItem


class ItemTakenDown(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: Literal["item_taken_down"] = "item_taken_down"
    event_id: Id
    event_time_ms: TimeMs
    video_id: Id


CatalogueEvent = Annotated[ItemAdded | ItemChanged | ItemTakenDown, Field(discriminator="kind")]
CATALOGUE_EVENT: TypeAdapter[CatalogueEvent] = TypeAdapter(CatalogueEvent)
