"""Erasure of a user from everything that this package keeps.

Knows the topic `erasures` and that something can forget a user. Does not know what an
online store is: each part hands in its own `erase`. The batcher follows the topic by
itself and refuses what an erased user did before the erasure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streams.bus import Bus, Outgoing, Producer, Record
from streams.events import Id
from streams.topics import ERASURES

Erase = Callable[[str, int], object]
"""Forgets a user's facts until a time (ms); doing it twice changes nothing."""


class Erasure(BaseModel):
    """The message on `erasures`, key user_id."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    user_id: Id
    at_ms: Annotated[int, Field(strict=True, ge=0)]


def request(producer: Producer, user_id: str, at_ms: int) -> None:
    """Asks every part of the stack to forget what the user did until `at_ms`."""
    erasure = Erasure(user_id=user_id, at_ms=at_ms)
    body = erasure.model_dump_json().encode()
    producer.send([Outgoing(ERASURES, body, user_id.encode())])


def parse(record: Record) -> Erasure | None:
    """The erasure in a record; None when it holds none that is valid."""
    try:
        return Erasure.model_validate_json(record.value or b"")
    except ValidationError:
        return None


def erase_user(user_id: str, at_ms: int, parts: Sequence[Erase]) -> None:
    """Erases the user from each part, such as `EventLog.erase` and `FeedbackStore.erase`."""
    for erase in parts:
        erase(user_id, at_ms)


def follow(bus: Bus, parts: Sequence[Erase], stop: threading.Event, *, group: str) -> None:
    """Carries every erasure of the topic out in `parts` until `stop` is set.

    Commits after all parts have returned; one that raises ends the loop, and the
    erasure comes again with the next start.
    """
    consumer = bus.consumer([ERASURES], group)
    try:
        while not stop.is_set():
            if records := consumer.poll(100, 0.2):
                for erasure in filter(None, map(parse, records)):
                    erase_user(erasure.user_id, erasure.at_ms, parts)
                consumer.commit(records)
    finally:
        consumer.close()
