"""Whom to forget: the topic `erasures`, read into one table of user -> time.

Knows the message {"user_id", "at_ms"}. Does not know what is erased elsewhere.
"""

from __future__ import annotations

import logging
import uuid

from pydantic import BaseModel, ConfigDict, ValidationError

from streams.bus import Bus, Outgoing, Record
from streams.events import Id
from streams.topics import ERASURES

_LOG = logging.getLogger(__name__)


class Erasure(BaseModel):
    """Everything that `user_id` did up to `at_ms` is to be forgotten, and never to return."""

    model_config = ConfigDict(frozen=True)

    user_id: Id
    at_ms: int


def erasure_message(user_id: str, at_ms: int) -> Outgoing:
    body = Erasure(user_id=user_id, at_ms=at_ms).model_dump_json().encode()
    return Outgoing(ERASURES, body, user_id.encode())


class Erasures:
    """All erasures so far. The whole topic is read before the constructor returns."""

    def __init__(self, bus: Bus) -> None:
        self.until: dict[str, int] = {}
        for partition, (start, stop) in bus.ends(ERASURES).items():
            for record in bus.scan(ERASURES, partition, start, stop):
                self._note(record)
        self._consumer = bus.consumer([ERASURES], f"erasures-{uuid.uuid4().hex}")

    def refresh(self) -> None:
        """Takes what came since. Does not wait."""
        for record in self._consumer.poll(1_000, 0.0):
            self._note(record)

    def close(self) -> None:
        self._consumer.close()

    def _note(self, record: Record) -> None:
        try:
            erasure = Erasure.model_validate_json(record.value or b"")
        except ValidationError:
            _LOG.error("%s/%d/%d is no erasure: ignored", *record[:3])
            return
        known = self.until.get(erasure.user_id, erasure.at_ms)
        self.until[erasure.user_id] = max(known, erasure.at_ms)
