"""/v1/catalogue/{item_id}: GET reads an item, PUT adds or replaces it, DELETE takes it down.

Knows catalogue events. Does not know how they are folded.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from serving.gateway import Gateway
from serving.http.api.errors import KEYED, WRITTEN, responses
from serving.http.api.gateway_state import GatewayState
from serving.http.api.json import json_reply
from serving.http.auth import needs
from serving.http.paths import decodable_path
from streams.bus.contract import BusError, MessagesRejected, Outgoing
from streams.contract.bounds import Id, TimeMs, Title
from streams.contract.declaration import contract
from streams.contract.items import (
    CatalogueEvent,
    CatalogueItem,
    ItemChanged,
    ItemFields,
    ItemTakenDown,
)
from streams.contract.topics import CATALOGUE

router = APIRouter(
    prefix="/v1/catalogue", tags=["catalogue"], dependencies=[Depends(decodable_path)]
)
ItemId = Annotated[Id, Path(alias="item_id")]
_EXAMPLE: JsonDict = {"title": "Kolya (1996)", "categories": ["Comedy"], "duration_ms": 6_300_000}


class ItemBody(ItemFields):
    """An item's fields; its id is in the path. `genres` is an old name of `categories`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    title: Annotated[Title, Field(min_length=1)]
    created_ms: Annotated[TimeMs | None, Field(description="now when absent")] = None  # type: ignore[assignment]


@router.get(
    "/{item_id:id}",
    dependencies=[Depends(needs("recommend"))],
    responses={**KEYED, **responses(404)},
)
def get_item(item_id: ItemId, gateway: GatewayState) -> Response:
    """Returns one item of the catalogue and whether it is available."""
    item = gateway.catalogue.get(item_id)
    if item is None:
        raise HTTPException(404, f"no item {item_id!r} in the catalogue")
    old_names = {"video_id": item.item_id, "genres": item.categories}
    available = gateway.catalogue.available(item.item_id)
    return json_reply(item.model_dump() | old_names | {"available": available})


@router.put(
    "/{item_id:id}",
    status_code=202,
    dependencies=[Depends(needs("admin"))],
    responses=WRITTEN,
)
def put_item(item_id: ItemId, body: ItemBody, gateway: GatewayState) -> Response:
    """Adds or replaces an item. It can be recommended once the event is read back."""
    now_ms = gateway.clock.now_ms()
    created_ms = now_ms if body.created_ms is None else body.created_ms
    fields = body.model_dump() | {"item_id": item_id, "created_ms": created_ms}
    try:
        item = CatalogueItem.model_validate(fields, context=contract().items)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in problems]
        ) from error
    event = ItemChanged(event_id=uuid.uuid4().hex, event_time_ms=now_ms, item=item)
    return _publish(gateway, item_id, event)


@router.delete(
    "/{item_id:id}",
    status_code=202,
    dependencies=[Depends(needs("admin"))],
    responses=WRITTEN,
)
def take_down(item_id: ItemId, gateway: GatewayState) -> Response:
    """Takes an item down. No reply contains it once the event is read back."""
    now_ms = gateway.clock.now_ms()
    event = ItemTakenDown(event_id=uuid.uuid4().hex, event_time_ms=now_ms, item_id=item_id)
    return _publish(gateway, item_id, event)


def _publish(gateway: Gateway, item_id: str, event: CatalogueEvent) -> Response:
    message = Outgoing(CATALOGUE, event.model_dump_json().encode(), item_id.encode())
    try:
        gateway.outbox.send([message])
    except MessagesRejected as error:
        raise HTTPException(413, str(error)) from error
    except BusError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
    reply: dict[str, Any] = {"accepted": 1, "item_id": item_id, "video_id": item_id}
    return json_reply(reply, 202)
