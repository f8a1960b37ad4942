"""/v1/catalogue/{item_id}: GET reads an item, PUT adds or replaces it, DELETE takes it down.

POST /v1/catalogue, /v1/catalogue/lookup and /v1/catalogue/takedowns do the same with the id in the
body, for ids that clients or proxies change in a path; POST /v1/catalogue also takes a list.
Knows catalogue events. Does not know how they are folded.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.config import JsonDict

from serving.gateway import Gateway
from serving.http.api.errors import KEYED, WRITTEN, invalid_body, responses
from serving.http.api.gateway_state import GatewayState, send
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.http.paths import decodable_path
from streams.bus.contract import Outgoing
from streams.catalogue import item_id_of
from streams.codec.inputs import reject_future
from streams.contract.bounds import Id, TimeMs, Title, future_limit_ms
from streams.contract.declaration import contract
from streams.contract.items import (
    ITEM_ID,
    CatalogueEvent,
    CatalogueItem,
    ItemChanged,
    ItemFields,
    ItemTakenDown,
    present_names,
)
from streams.contract.topics import CATALOGUE

router = APIRouter(
    prefix="/v1/catalogue", tags=["catalogue"], dependencies=[Depends(decodable_path)]
)
ItemId = Annotated[Id, Path(alias="item_id")]
MAX_ITEMS = 1_000
_EXAMPLE: JsonDict = {"title": "Kolya (1996)", "categories": ["Comedy"], "duration_ms": 6_300_000}


class ItemBody(ItemFields):
    """An item's fields; its id is in the path. `genres` is an old name of `categories`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    _present_names = model_validator(mode="before")(present_names)

    title: Annotated[Title, Field(min_length=1)]
    created_ms: Annotated[TimeMs | None, Field(description="now when absent")] = None  # type: ignore[assignment]


class StatedItem(ItemBody):
    """An item's fields and its id."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item_id": "v242", **_EXAMPLE}]})

    item_id: Id = Field(validation_alias=ITEM_ID)


class ItemIdBody(BaseModel):
    """The item's id, which may be any that an event may have."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"item_id": "v242"}]})

    _present_names = model_validator(mode="before")(present_names)

    item_id: Id = Field(validation_alias=ITEM_ID)


StatedItems = Annotated[
    list[StatedItem],
    Field(min_length=1, max_length=MAX_ITEMS),
    BeforeValidator(
        lambda stated: stated if isinstance(stated, list) else [stated],
        json_schema_input_type=StatedItem
        | Annotated[list[StatedItem], Field(min_length=1, max_length=MAX_ITEMS)],
    ),
]


@router.get(
    "/{item_id:id}",
    dependencies=[Depends(needs("recommend"))],
    responses={**KEYED, **responses(404, 422)},
)
def get_item(item_id: ItemId, gateway: GatewayState) -> Response:
    """Returns one item of the catalogue and whether it is available."""
    return _lookup(item_id, gateway)


@router.post(
    "/lookup",
    dependencies=[Depends(needs("recommend"))],
    responses={**WRITTEN, **responses(404)},
)
def look_up_item(body: ItemIdBody, gateway: GatewayState) -> Response:
    """GET /v1/catalogue/{item_id} with the id in the body."""
    return _lookup(body.item_id, gateway)


@router.put(
    "/{item_id:id}",
    status_code=202,
    dependencies=[Depends(needs("admin"))],
    responses=WRITTEN,
)
def put_item(item_id: ItemId, body: ItemBody, gateway: GatewayState) -> Response:
    """Adds or replaces an item. It can be recommended once the event is read back.

    `changed` is false if the catalogue holds the same item already.
    """
    event = _item_changed(gateway, item_id, body, ("body",))
    return _publish_one(gateway, item_id, event)


@router.post("", status_code=202, dependencies=[Depends(needs("admin"))], responses=WRITTEN)
def put_items(body: StatedItems, gateway: GatewayState) -> Response:
    """PUT /v1/catalogue/{item_id} with the ids in the body: one item, or a list.

    One invalid item refuses all. Of two items with the same id the later one wins.
    """
    events: list[CatalogueEvent] = [
        _item_changed(gateway, item.item_id, item, ("body", index))
        for index, item in enumerate(body)
    ]
    changed = _publish(gateway, events)
    return json_reply({"accepted": len(events), "changed": changed}, 202)


@router.delete(
    "/{item_id:id}",
    status_code=202,
    dependencies=[Depends(needs("admin"))],
    responses=WRITTEN,
)
def take_down(item_id: ItemId, gateway: GatewayState) -> Response:
    """Takes an item down. No reply contains it once the event is read back.

    `changed` is false if it was taken down already.
    """
    return _publish_one(gateway, item_id, _item_taken_down(gateway, item_id))


@router.post(
    "/takedowns", status_code=202, dependencies=[Depends(needs("admin"))], responses=WRITTEN
)
def take_down_item(body: ItemIdBody, gateway: GatewayState) -> Response:
    """DELETE /v1/catalogue/{item_id} with the id in the body."""
    return _publish_one(gateway, body.item_id, _item_taken_down(gateway, body.item_id))


def _lookup(item_id: str, gateway: Gateway) -> Response:
    item = gateway.catalogue.get(item_id)
    if item is None:
        raise HTTPException(404, f"no item {item_id!r} in the catalogue")
    old_names = {"video_id": item.item_id, "genres": item.categories}
    available = gateway.catalogue.available(item.item_id)
    return json_reply(item.model_dump() | old_names | {"available": available})


def _item_changed(
    gateway: Gateway, item_id: str, body: ItemBody, loc: tuple[str | int, ...]
) -> ItemChanged:
    """The event that states the item. Raises `RequestValidationError` with fields below `loc`."""
    now_ms = gateway.clock.now_ms()
    created_ms = now_ms if body.created_ms is None else body.created_ms
    latest_ms = future_limit_ms(gateway.clock, gateway.admission.future_ms)
    if rejection := reject_future({"created_ms": created_ms}, latest_ms):
        problem = {"type": rejection.cause, "loc": (*loc, "created_ms"), "msg": rejection.detail}
        raise RequestValidationError([problem])
    fields = body.model_dump() | {"item_id": item_id, "created_ms": created_ms}
    try:
        item = CatalogueItem.model_validate(fields, context=contract().items)
    except ValidationError as error:
        raise invalid_body(error, loc) from error
    return ItemChanged(event_id=uuid.uuid4().hex, event_time_ms=now_ms, item=item)


def _item_taken_down(gateway: Gateway, item_id: str) -> ItemTakenDown:
    now_ms = gateway.clock.now_ms()
    return ItemTakenDown(event_id=uuid.uuid4().hex, event_time_ms=now_ms, item_id=item_id)


def _publish_one(gateway: Gateway, item_id: str, event: CatalogueEvent) -> Response:
    changed = _publish(gateway, [event]) > 0
    reply: dict[str, Any] = {
        "accepted": 1,
        "item_id": item_id,
        "video_id": item_id,
        "changed": changed,
    }
    return json_reply(reply, 202)


def _publish(gateway: Gateway, events: Sequence[CatalogueEvent]) -> int:
    """Sends the events; returns how many change the catalogue as this process has read it."""
    changed = sum(gateway.catalogue.would_change(event) for event in events)
    messages = [
        Outgoing(CATALOGUE, event.model_dump_json().encode(), item_id_of(event).encode())
        for event in events
    ]
    send(gateway, messages)
    return changed
