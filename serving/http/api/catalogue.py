"""PUT and DELETE /v1/catalogue/{video_id}: what may be recommended; GET to look at it."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from serving.gateway import Gateway, gateway_of
from serving.http.api.json import json_reply
from serving.http.auth import needs
from streams.bus.contract import BusError, Outgoing
from streams.contract.events import (
    CatalogueEvent,
    CatalogueItem,
    ItemChanged,
    ItemTakenDown,
    Provenance,
)
from streams.contract.topics import CATALOGUE

router = APIRouter(prefix="/v1/catalogue", tags=["catalogue"])
State = Annotated[Gateway, Depends(gateway_of)]
VideoId = Annotated[str, Path(min_length=1, max_length=128)]
_EXAMPLE: JsonDict = {"title": "Kolya (1996)", "genres": ["Comedy"], "duration_ms": 6_300_000}


class ItemBody(BaseModel):
    """An item's fields; the id stands in the address."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    title: Annotated[str, Field(min_length=1, max_length=512)]
    genres: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=32)
    ] = []
    author_id: Annotated[str | None, Field(max_length=128)] = None
    duration_ms: Annotated[int, Field(ge=0)] = 0
    price_cents: Annotated[int, Field(ge=0)] = 0
    provenance: Provenance = "human"
    created_ms: Annotated[int | None, Field(ge=0, description="now when absent")] = None


@router.get("/{video_id}", dependencies=[Depends(needs("recommend"))])
def look(video_id: VideoId, gateway: State) -> Response:
    """What the catalogue says of one video, and whether it may be shown."""
    item = gateway.catalogue.get(video_id)
    if item is None:
        raise HTTPException(404, f"no video {video_id!r} in the catalogue")
    return json_reply(_shown(gateway, item))


@router.put("/{video_id}", status_code=202, dependencies=[Depends(needs("admin"))])
def put(video_id: VideoId, body: ItemBody, gateway: State) -> Response:
    """Adds or replaces a video. It can be recommended as soon as the event is read back."""
    now_ms = gateway.clock.now_ms()
    created_ms = now_ms if body.created_ms is None else body.created_ms
    fields = body.model_dump() | {"video_id": video_id, "created_ms": created_ms}
    item = CatalogueItem.model_validate(fields)
    event = ItemChanged(event_id=uuid.uuid4().hex, event_time_ms=now_ms, item=item)
    _publish(gateway, video_id, event)
    return json_reply({"accepted": 1, "video_id": video_id}, 202)


@router.delete("/{video_id}", status_code=202, dependencies=[Depends(needs("admin"))])
def take_down(video_id: VideoId, gateway: State) -> Response:
    """Takes a video down: no answer holds it once the event is read back."""
    now_ms = gateway.clock.now_ms()
    event = ItemTakenDown(event_id=uuid.uuid4().hex, event_time_ms=now_ms, video_id=video_id)
    _publish(gateway, video_id, event)
    return json_reply({"accepted": 1, "video_id": video_id}, 202)


def _publish(gateway: Gateway, video_id: str, event: CatalogueEvent) -> None:
    message = Outgoing(CATALOGUE, event.model_dump_json().encode(), video_id.encode())
    try:
        gateway.outbox.send([message])
    except BusError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error


def _shown(gateway: Gateway, item: CatalogueItem) -> dict[str, Any]:
    return item.model_dump() | {"available": gateway.catalogue.available(item.video_id)}
