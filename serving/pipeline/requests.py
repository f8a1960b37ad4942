"""What a caller may ask, as strict models: an unknown field is refused by name.

Knows fields and bounds. Does not know HTTP (`serving.http.api`) nor Kafka
(`serving.kafka_requests`): both edges take these.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from serving.pipeline.query import SurfaceName
from streams.contract.events import Id
from streams.contract.topics import entity_hash

MAX_CANDIDATES = 5_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    user_id: Id
    seed: Seed | None = Field(None, description="Makes exploration repeatable; drawn when absent.")
    request_id: Id = Field(default_factory=lambda: uuid.uuid4().hex)

    def drawn_seed(self) -> int:
        """The caller's seed, or one that the request id fixes."""
        return self.seed if self.seed is not None else entity_hash(self.request_id) % 2**31


class FeedRequest(_Request):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "u196", "k": 10, "seed": 7}]}
    )

    surface: Literal["feed"] = "feed"
    k: Annotated[int, Field(ge=1, le=100)] = 10
    candidates: Annotated[
        list[Id] | None,
        Field(max_length=MAX_CANDIDATES, description="Rank these videos and no others."),
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


def video_of(request: Request) -> str | None:
    return request.video_id if isinstance(request, QueriesRequest) else None


def candidates_of(request: Request) -> tuple[str, ...]:
    given = request.candidates if isinstance(request, FeedRequest) else None
    return tuple(given or ())


def surface_of(request: Request) -> SurfaceName:
    return request.surface
