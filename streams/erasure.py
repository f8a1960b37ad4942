"""Erasure of a user from everything that this package keeps.

Knows the topic `erasures` and that something can forget a user. Does not know what an
online store is: each part hands in its own `erase` (`follow`). The batcher keeps the
table of whom to forget (`Erasures`) and refuses what they did before the erasure.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streams.bus.contract import Bus, Outgoing, Record
from streams.contract.events import Id
from streams.contract.topics import ERASURES

_log = logging.getLogger(__name__)
WAIT_S = 0.5

Erase = Callable[[str, int], object]
"""Forgets a user's facts until a time (ms); doing it twice changes nothing."""


class Erasure(BaseModel):
    """Everything that `user_id` did up to `at_ms` is to be forgotten, and never to return."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    user_id: Id
    at_ms: Annotated[int, Field(strict=True, ge=0)]


def message(user_id: str, at_ms: int) -> Outgoing:
    """Asks every part of the stack to forget what the user did until `at_ms`."""
    body = Erasure(user_id=user_id, at_ms=at_ms).model_dump_json().encode()
    return Outgoing(ERASURES, body, user_id.encode())


def parse(record: Record) -> Erasure | None:
    """The erasure in a record; None, and a line in the log, when it holds none that is valid."""
    try:
        return Erasure.model_validate_json(record.value or b"")
    except ValidationError:
        _log.error("%s/%d/%d is no erasure: ignored", *record[:3])
        return None


class Erasures:
    """Every user to forget, with the time up to which: `until`, user id -> ms.

    The whole topic is read before the constructor returns.
    """

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
        if erasure := parse(record):
            known = self.until.get(erasure.user_id, erasure.at_ms)
            self.until[erasure.user_id] = max(known, erasure.at_ms)


class KeptErasures:
    """The same table in a file, for a broker that forgets its topics when it restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, user_id: str, at_ms: int) -> None:
        """Adds an erasure; one that stands already is not added again."""
        if self.until().get(user_id, -1) >= at_ms:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = Erasure(user_id=user_id, at_ms=at_ms).model_dump_json()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # a line that a crash cut short must not swallow this one
            file.flush()
            os.fsync(file.fileno())

    def until(self) -> dict[str, int]:
        """User id -> time up to which to forget (ms). A line that a crash cut short is left out."""
        found: dict[str, int] = {}
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        for line in lines:
            with suppress(ValidationError):
                erasure = Erasure.model_validate_json(line)
                found[erasure.user_id] = max(erasure.at_ms, found.get(erasure.user_id, 0))
        return found

    def restore(self, bus: Bus) -> int:
        """Writes to the topic what it has lost; returns how many that were."""
        known = Erasures(bus)
        known.close()
        kept = self.until().items()
        lost = [message(user, at) for user, at in kept if known.until.get(user, -1) < at]
        if lost:
            producer = bus.producer()
            producer.send(lost)
            producer.close()
        return len(lost)


def erase_user(user_id: str, at_ms: int, parts: Sequence[Erase]) -> None:
    """Erases the user from each part, such as `EventLog.erase` and `FeedbackStore.erase`."""
    for erase in parts:
        erase(user_id, at_ms)


def follow(
    bus: Bus,
    parts: Sequence[Erase],
    stop: threading.Event,
    *,
    group: str,
    wait_on: tuple[type[Exception], ...] = (),
) -> None:
    """Carries every erasure of the topic out in `parts` until `stop` is set.

    Commits after all parts have returned. An error of `wait_on` (a store that is down) is
    waited out; any other ends the loop, and the erasure comes again with the next start.
    """
    consumer = bus.consumer([ERASURES], group)
    try:
        while not stop.is_set():
            if (records := consumer.poll(100, 0.2)) and _carry_out(records, parts, stop, wait_on):
                consumer.commit(records)
    finally:
        consumer.close()


def _carry_out(
    records: Sequence[Record],
    parts: Sequence[Erase],
    stop: threading.Event,
    wait_on: tuple[type[Exception], ...],
) -> bool:
    """Whether all was done before `stop`. Erasing twice changes nothing, so all is done again."""
    while not stop.is_set():
        try:
            for erasure in filter(None, map(parse, records)):
                erase_user(erasure.user_id, erasure.at_ms, parts)
            return True
        except wait_on as error:
            _log.warning("erasures wait: %s", error)
            stop.wait(WAIT_S)
    return False
