"""The requests of every surface as strict models: unknown fields are rejected by name.

Knows fields and bounds. Does not know HTTP (`serving.http.api`) nor Kafka
(`serving.kafka_requests`), which both take these models.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from streams.contract.bounds import Id
from streams.contract.topics import entity_hash

MAX_CANDIDATES = 5_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: Id
    seed: Seed | None = Field(
        None, description="Makes exploration repeatable; derived from request_id when absent."
    )
    request_id: Id = Field(
        default_factory=lambda: uuid.uuid4().hex,
        description="Echoed. The same request of the same user gets the same reply for 10 "
        "minutes, another one with this id gets 409.",
    )

    def resolved_seed(self) -> int:
        """The request's seed, else one derived from its request id."""
        return self.seed if self.seed is not None else entity_hash(self.request_id) % 2**31


class FeedRequest(_Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "u196", "k": 10, "seed": 7}]}
    )

    surface: Literal["feed"] = "feed"
    k: Annotated[int, Field(ge=1, le=100)] = 10
    candidates: Annotated[
        list[Id] | None,
        Field(max_length=MAX_CANDIDATES, description="Rank only these items."),
    ] = None


class QueriesRequest(_Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "u196", "video_id": "v242", "k": 3}]}
    )

    surface: Literal["queries"] = "queries"
    video_id: Id
    k: Annotated[int, Field(ge=1, le=20)] = 3


class ReactivationRequest(_Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "u196", "k": 6}]})

    surface: Literal["reactivation"] = "reactivation"
    k: Annotated[int, Field(ge=1, le=20)] = 6


Request = FeedRequest | QueriesRequest | ReactivationRequest
REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="surface")])


def requested_item(request: Request) -> str | None:
    """The item that is playing; only queries are asked for under an item."""
    return request.video_id if isinstance(request, QueriesRequest) else None


def requested_candidates(request: Request) -> tuple[str, ...] | None:
    """The candidates that the caller provided; None where the sources choose."""
    provided = request.candidates if isinstance(request, FeedRequest) else None
    return None if provided is None else tuple(provided)


def states_request_id(request: Request) -> bool:
    """Whether the request id is the caller's."""
    return "request_id" in request.model_fields_set
