"""The event contract: what a producer may say, as one discriminated union.

Knows field names, types and bounds. Does not know time limits (admission decides
late, future and ancient) nor how events are carried (`streams.contract.schema`, `streams.bus.contract`).

A producer writes one JSON object to the topic `behaviour`, or one Protobuf message whose
header says so (`streams.codec.content_type`). Unknown fields are ignored, so a newer producer can talk
to an older mill; an unknown `kind` is a dead letter. A null means that the field is absent.
`streams.codec.decode` reads the same contract column by column, and a test holds the two to each
other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

# Bounds in characters. NUL is refused: stores and logs further on end a string there.
MAX_ID, MAX_QUERY, MAX_IMPRESSION = 128, 256, 1024
MAX_DWELL_MS, MAX_AMOUNT_CENTS = 86_400_000, 10**9
_NO_NUL = r"^[^\x00]*$"

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=_NO_NUL)]
QueryText = Annotated[str, Field(min_length=1, max_length=MAX_QUERY, pattern=_NO_NUL)]
DwellMs = Annotated[int, Field(strict=True, ge=0, le=MAX_DWELL_MS)]
AmountCents = Annotated[int, Field(strict=True, ge=0, le=MAX_AMOUNT_CENTS)]
Surface = Literal["feed", "queries", "reactivation", "search", "external"]
Provenance = Literal["human", "aigc"]
Origin = Literal["live", "replayed", "simulated"]

# The largest time a producer may name: year 2100. Times in microseconds exceed it
# and times in seconds fall before 1971, so both units are caught rather than guessed.
MIN_EVENT_TIME_MS = 31_536_000_000
MAX_EVENT_TIME_MS = 4_102_444_800_000


class _Event(BaseModel):
    """Fields that every event carries. Times are milliseconds since the epoch."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event_id: Id
    user_id: Id
    event_time_ms: Annotated[int, Field(strict=True, ge=MIN_EVENT_TIME_MS, le=MAX_EVENT_TIME_MS)]
    surface: Surface = "external"
    origin: Origin = "live"
    request_id: Id | None = None
    impression: (
        Annotated[str, Field(min_length=1, max_length=MAX_IMPRESSION, pattern=_NO_NUL)] | None
    ) = None
    """The signed token of the impression that this event answers (`streams.contract.impression`)."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class _VideoEvent(_Event):
    video_id: Id
    author_id: Id | None = None
    provenance: Provenance = "human"


class Shown(_VideoEvent):
    """A video was on screen. Served is not seen: the client says so."""

    kind: Literal["shown"] = "shown"


class Skip(_VideoEvent):
    kind: Literal["skip"] = "skip"
    dwell_ms: DwellMs = 0


class Play(_VideoEvent):
    kind: Literal["play"] = "play"
    dwell_ms: DwellMs = 0


class LongView(_VideoEvent):
    kind: Literal["long_view"] = "long_view"
    dwell_ms: DwellMs = 0


class Like(_VideoEvent):
    kind: Literal["like"] = "like"


class Share(_VideoEvent):
    kind: Literal["share"] = "share"


class Follow(_VideoEvent):
    """The user follows the video's author."""

    kind: Literal["follow"] = "follow"


class QueryShown(_VideoEvent):
    """A query stood in the bar under a video."""

    kind: Literal["query_shown"] = "query_shown"
    query: QueryText


class QueryClick(_VideoEvent):
    kind: Literal["query_click"] = "query_click"
    query: QueryText


class Search(_Event):
    kind: Literal["search"] = "search"
    query: QueryText


class Cart(_VideoEvent):
    kind: Literal["cart"] = "cart"
    amount_cents: AmountCents = 0


class Order(_VideoEvent):
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

# The order is part of the wire format of the internal batches: append, never reorder.
KINDS: tuple[str, ...] = (
    "shown",
    "skip",
    "play",
    "long_view",
    "like",
    "share",
    "follow",
    "query_shown",
    "query_click",
    "search",
    "cart",
    "order",
)
KIND_CODE: dict[str, int] = {kind: code for code, kind in enumerate(KINDS)}


class CatalogueItem(BaseModel):
    """What is known of a video, as its owner states it. Topic `catalogue`, key video_id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    video_id: Id
    title: Annotated[str, Field(max_length=512)]
    genres: tuple[Annotated[str, Field(max_length=64)], ...] = ()
    author_id: Id | None = None
    duration_ms: Annotated[int, Field(ge=0)] = 0
    price_cents: Annotated[int, Field(ge=0)] = 0
    provenance: Provenance = "human"
    created_ms: Annotated[int, Field(ge=0)] = 0


class ItemAdded(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: Literal["item_added"] = "item_added"
    event_id: Id
    event_time_ms: int
    item: CatalogueItem


class ItemChanged(BaseModel):
    """Replaces every field of the item."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: Literal["item_changed"] = "item_changed"
    event_id: Id
    event_time_ms: int
    item: CatalogueItem


class ItemTakenDown(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: Literal["item_taken_down"] = "item_taken_down"
    event_id: Id
    event_time_ms: int
    video_id: Id


CatalogueEvent = Annotated[ItemAdded | ItemChanged | ItemTakenDown, Field(discriminator="kind")]
CATALOGUE_EVENT: TypeAdapter[CatalogueEvent] = TypeAdapter(CatalogueEvent)
