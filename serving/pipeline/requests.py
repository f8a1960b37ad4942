"""What every request has in common, as a strict model: unknown fields are rejected by name.

Knows fields and bounds. Does not know the surfaces, which add fields of their own
(`serving.surfaces`), HTTP (`serving.http.api`) nor Kafka (`serving.kafka_requests`).
"""

from __future__ import annotations

import uuid
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from streams.contract.bounds import Id
from streams.contract.topics import entity_hash

MAX_CANDIDATES = 5_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]


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

    def resolved_seed(self) -> int:
        """The request's seed, else one derived from its request id."""
        return self.seed if self.seed is not None else entity_hash(self.request_id) % 2**31

    def requested_item(self) -> str | None:
        """The item that the request is about, such as the one that is playing."""
        return None

    def requested_candidates(self) -> tuple[str, ...] | None:
        """The candidates that the caller provided; None where the sources choose."""
        return None


def states_request_id(request: Request) -> bool:
    """Whether the request id is the caller's."""
    return "request_id" in request.model_fields_set
