"""Items and the events that add, change and take them down. Topic `catalogue`, key item_id.

Knows an item's own fields, version 2: version 1 said `video_id` and `genres`, and is still read.
Does not know which attributes an owner declares (`streams.contract.declaration`) nor how events
are folded (`streams.catalogue`). A new field is one line here: the catalogue's columns, the HTTP
body and the JSON schema derive from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from streams.contract.attributes import AttributeDeclarations, AttributeValues
from streams.contract.bounds import (
    MAX_GENRES,
    Currency,
    DurationMs,
    Genre,
    Id,
    Kind,
    Label,
    Locale,
    OptionalTimeMs,
    PriceCents,
    Text,
    TimeMs,
    Title,
)

Provenance = Literal["human", "aigc"]
Availability = Literal["in_stock", "out_of_stock", "preorder", "backorder"]
# The present name of a field, and the one of version 1.
RENAMED = {"item_id": "video_id", "categories": "genres"}
ITEM_ID = AliasChoices("item_id", RENAMED["item_id"])
_CATEGORIES = AliasChoices("categories", RENAMED["categories"])


def one_name(data: Any) -> Any:
    """The data of a message, unchanged.

    Raises:
        ValueError: it states a field under both of its names, with different values.
    """
    if isinstance(data, dict):
        for name, old in RENAMED.items():
            if old in data and data.get(name, data[old]) != data[old]:
                raise ValueError(f"{name} and {old} are two names of one field: send {name}")
    return data


def present_names(data: Any) -> Any:
    """The data of a message without the old name of a field that states its present one as well.

    For models that reject unknown fields. Raises as `one_name` does.
    """
    if not isinstance(one_name(data), dict):
        return data
    stated_twice = {old for name, old in RENAMED.items() if name in data}
    return {name: value for name, value in data.items() if name not in stated_twice}


class ItemFields(BaseModel):
    """An item's description without its id. Times are milliseconds since 1970."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: Kind = "video"
    title: Title
    text: Text = ""
    categories: Annotated[tuple[Genre, ...], Field(max_length=MAX_GENRES)] = Field(
        (), validation_alias=_CATEGORIES
    )
    author_id: Id | None = None
    brand: Label | None = None
    seller_id: Id | None = None
    duration_ms: DurationMs = 0
    price_cents: PriceCents = 0  # hundredths of `currency`
    currency: Currency | None = None
    availability: Availability = "in_stock"
    """An item that is out of stock is not recommended."""
    locale: Locale | None = None
    group_id: Id | None = None
    """Variants of one product share it."""
    provenance: Provenance = "human"
    created_ms: OptionalTimeMs = 0  # 0: not stated
    attributes: AttributeValues = {}
    undeclared: Annotated[tuple[str, ...], Field(validate_default=True)] = ()
    """Attributes that were not declared when they came, where the settings say to mark them."""

    _one_name = model_validator(mode="before")(one_name)

    @field_validator("attributes")
    @classmethod
    def _as_declared(cls, attributes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """At the entry, where the validation's context holds the declarations."""
        declarations = info.context
        if isinstance(declarations, AttributeDeclarations):
            return declarations.admit(attributes)
        return attributes

    @field_validator("undeclared")
    @classmethod
    def _marked(cls, stored: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        declarations = info.context
        if isinstance(declarations, AttributeDeclarations):
            return declarations.marked(info.data.get("attributes", {}))
        return stored

    @property
    def genres(self) -> tuple[str, ...]:
        """The categories, under the name of version 1."""
        return self.categories


class CatalogueItem(ItemFields):
    """An item's description, as its owner states it."""

    item_id: Id = Field(validation_alias=ITEM_ID)

    @property
    def video_id(self) -> str:
        """The id, under the name that event columns have."""
        return self.item_id


class _ItemStated(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    event_id: Id
    event_time_ms: TimeMs
    item: CatalogueItem


class ItemAdded(_ItemStated):
    kind: Literal["item_added"] = "item_added"


class ItemChanged(_ItemStated):
    """Replaces every field of the item."""

    kind: Literal["item_changed"] = "item_changed"


class ItemTakenDown(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: Literal["item_taken_down"] = "item_taken_down"
    event_id: Id
    event_time_ms: TimeMs
    item_id: Id = Field(validation_alias=ITEM_ID)

    _one_name = model_validator(mode="before")(one_name)

    @property
    def video_id(self) -> str:
        return self.item_id


CatalogueEvent = Annotated[ItemAdded | ItemChanged | ItemTakenDown, Field(discriminator="kind")]
CATALOGUE_EVENT: TypeAdapter[CatalogueEvent] = TypeAdapter(CatalogueEvent)

OWN_NAMES = frozenset({*CatalogueItem.model_fields, *RENAMED.values(), "available"})
"""Names that no declared attribute may have: each would hide a field of the item."""
