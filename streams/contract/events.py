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

from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    computed_field,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from streams.contract.attributes import AttributeValues, attributes_json
from streams.contract.bounds import (
    AmountCents,
    DwellMs,
    Id,
    ImpressionToken,
    QueryText,
    SignalValue,
    SurfaceName,
    Text,
    TimeMs,
)
from streams.contract.declaration import contract

# Items have a module of their own; these names are also found here, as they were before.
from streams.contract.items import CATALOGUE_EVENT as CATALOGUE_EVENT
from streams.contract.items import ITEM_ID, one_name
from streams.contract.items import CatalogueEvent as CatalogueEvent
from streams.contract.items import CatalogueItem as CatalogueItem
from streams.contract.items import ItemAdded as ItemAdded
from streams.contract.items import ItemChanged as ItemChanged
from streams.contract.items import ItemTakenDown as ItemTakenDown
from streams.contract.items import Provenance as Provenance
from streams.contract.signals import PROFILE, SHIPPED, Signal, Signals

NO_SURFACE = "external"
"""Stated by events that no surface of this stack led to, and the default."""


def _known_surface(name: str) -> str:
    known = contract().surfaces
    if known is None or name == NO_SURFACE or name in known:
        return name
    raise PydanticCustomError(
        "unknown_value",
        "Input should be one of {known}",
        {"known": ", ".join([*known, NO_SURFACE])},
    )


Surface = Annotated[SurfaceName, AfterValidator(_known_surface)]
"""A name of the form that every reader accepts, and declared where events enter."""
Origin = Literal["live", "replayed", "simulated"]


class _Event(BaseModel):
    """Fields that every event carries. Times are milliseconds since 1970."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event_id: Id
    user_id: Id
    event_time_ms: TimeMs
    surface: Surface = NO_SURFACE
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
    _one_name = model_validator(mode="before")(one_name)

    video_id: Id = Field(validation_alias=ITEM_ID)
    """Of any kind of item; named as the stored columns are. Producers say `item_id`."""
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


class Profile(_Event):
    """States what the owner knows of a user, in place of all that was stated before.

    Admitted where attributes of users are declared (`Contract.users`), which they must fit.
    """

    kind: Literal["profile"] = "profile"
    attributes: AttributeValues

    @model_validator(mode="before")
    @classmethod
    def _text_is_json(cls, data: Any) -> Any:
        """Protobuf and stored events state the attributes as JSON in the field `text`."""
        if isinstance(data, dict) and data.get("attributes") is None and "text" in data:
            return {**data, "attributes": data["text"]}
        return data

    @field_validator("attributes", mode="before")
    @classmethod
    def _object_of(cls, stated: Any) -> Any:
        try:
            return orjson.loads(stated) if isinstance(stated, str) else stated
        except orjson.JSONDecodeError:
            return stated  # pydantic names the type that it expects

    @field_validator("attributes")
    @classmethod
    def _as_declared(cls, attributes: dict[str, Any]) -> dict[str, Any]:
        admitted = contract().users.admit(attributes)
        attributes_json(admitted)  # refuses what is too large
        return admitted

    @computed_field  # type: ignore[prop-decorator]
    @property
    def text(self) -> str:
        """The attributes as the stored column has them."""
        return attributes_json(self.attributes)


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
"""The shipped kinds. `event_adapter` is the contract in force."""

EVENT_MODELS: dict[str, type[BaseModel]] = {
    model.model_fields["kind"].default: model for model in get_args(get_args(Event)[0])
}
"""Kind -> its model."""

KINDS: tuple[str, ...] = tuple(EVENT_MODELS)
"""The shipped kinds; a kind's place is its number."""
KIND_CODE: dict[str, int] = {signal.name: signal.number for signal in SHIPPED}

_PAYLOAD_FIELDS: dict[str, dict[str, Any]] = {
    "dwell": {"dwell_ms": (DwellMs, 0)},
    "amount": {"amount_cents": (AmountCents, 0)},
    "value": {"value": (SignalValue, ...)},
    "text": {"text": (Text | None, None)},
}


@lru_cache(maxsize=16)
def models_of(signals: Signals) -> dict[str, type[BaseModel]]:
    """Kind -> its model, of the shipped kinds and of declared signals."""
    return EVENT_MODELS | {signal.name: _signal_model(signal) for signal in signals.declared}


def _signal_model(signal: Signal) -> type[BaseModel]:
    if signal == PROFILE:
        return Profile
    fields: dict[str, Any] = {"kind": (Literal[signal.name], signal.name)}
    for payload in signal.payload:
        fields |= _PAYLOAD_FIELDS[payload]
    title = "".join(word.capitalize() for word in signal.name.split("_"))
    return create_model(f"{title}Signal", __base__=_ItemEvent, __module__=__name__, **fields)


def event_adapter() -> TypeAdapter[Event]:
    """The events that a producer may state under the contract in force."""
    return _adapter_of(contract().signals)


@lru_cache(maxsize=16)
def _adapter_of(signals: Signals) -> TypeAdapter[Event]:
    if not signals.declared:
        return EVENT
    models = tuple(models_of(signals).values())
    union: Any = Annotated[Union[models], Field(discriminator="kind")]  # noqa: UP007
    return TypeAdapter(union)


LITERAL_VALUES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "origin": get_args(Origin),
    "provenance": get_args(Provenance),
}
"""Every field with a closed set of values."""
