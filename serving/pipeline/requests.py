"""What every request has in common, as a strict model: unknown fields are rejected by name.

Knows fields and bounds. Does not know the surfaces, which add fields of their own
(`serving.surfaces`), HTTP (`serving.http.api`) nor Kafka (`serving.kafka_requests`).
"""

from __future__ import annotations

import uuid
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streams.contract.bounds import Id, Kind, Locale
from streams.contract.items import ITEM_ID, present_names
from streams.contract.topics import entity_hash

MAX_CANDIDATES = 5_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class RequestContext(BaseModel):
    """Where the reply will be shown. Stages read it as `Query.context`; no reply repeats it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"device": "phone", "page": "product", "locale": "pt-BR"}]},
    )

    device: Kind | None = Field(None, description="A kind of device, such as phone or tv.")
    page: Kind | None = Field(None, description="A kind of page, such as home or product.")
    locale: Locale | None = None
    item_id: Id | None = Field(None, description="The item that the page is about.")


class Request(BaseModel):
    """A surface gives `surface` its name as the only value, and `k` its bounds and default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    surface: str
    user_id: Id
    k: int
    seed: Seed | None = Field(
        None, description="Makes exploration repeatable; derived from request_id when absent."
    )
    request_id: Id = Field(
        default_factory=lambda: uuid.uuid4().hex,
        description="Echoed. The same request of the same user gets the same reply for 10 "
        "minutes, another one with this id gets 409.",
    )

    context: RequestContext | None = None

    def resolved_seed(self) -> int:
        """The request's seed, else one derived from its request id."""
        return self.seed if self.seed is not None else entity_hash(self.request_id) % 2**31

    def requested_item(self) -> str | None:
        """The item that the request is about, such as the one that is playing."""
        return None

    def requested_candidates(self) -> tuple[str, ...] | None:
        """The candidates that the caller provided; None where the sources choose."""
        return None


class ItemRequest(Request):
    """A request about an item. `video_id` is the name of version 1."""

    item_id: Id = Field(validation_alias=ITEM_ID)

    _present_names = model_validator(mode="before")(present_names)

    def requested_item(self) -> str | None:
        return self.item_id


def states_request_id(request: Request) -> bool:
    """Whether the request id is the caller's."""
    return "request_id" in request.model_fields_set
