"""Erasure of a user from everything that this package keeps.

Knows the topic `erasures`. Does not know the stores: each passes its own `erase` to
`consume_erasures`. The batcher keeps a table of erased users (`Erasures`) and rejects their
events from before the erasure.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

from pydantic import BaseModel, ConfigDict, TypeAdapter

from streams.bus.consume import consume
from streams.bus.contract import Bus, Outgoing
from streams.bus.polled import Record
from streams.codec.decode import Rejection
from streams.codec.inputs import (
    OnRejected,
    RejectedRecord,
    apply_valid,
    log_rejected,
    no_limit,
    reject_future,
    validate_message,
    validate_record,
)
from streams.contract.bounds import Id, TimeMs
from streams.contract.topics import ERASURES
from streams.telemetry import set_aside

Erase = Callable[[str, int], object]
"""Erases a user's data up to a time (ms); erasing twice changes nothing."""


class Erasure(BaseModel):
    """Everything that `user_id` did up to `at_ms` is erased, also from later deliveries."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    user_id: Id
    at_ms: TimeMs


_ERASURE: TypeAdapter[Erasure] = TypeAdapter(Erasure)


def erasure_message(user_id: str, at_ms: int) -> Outgoing:
    """The record that erases what the user did up to `at_ms` from the whole stack."""
    body = Erasure(user_id=user_id, at_ms=at_ms).model_dump_json().encode()
    return Outgoing(ERASURES, body, user_id.encode())


def parse_erasure(record: Record, latest_ms: int) -> Erasure | Rejection:
    """The erasure in a record of the topic `erasures`, or why it is none.

    `latest_ms`: the largest time that it may state (`streams.contract.bounds.future_limit_ms`).
    """
    erasure = validate_record(_ERASURE, record)
    if isinstance(erasure, Rejection):
        return erasure
    return reject_future({"at_ms": erasure.at_ms}, latest_ms) or erasure


class Erasures:
    """The erased users: `until_ms` maps a user id to the time of its erasure.

    The constructor reads the whole topic.
    """

    def __init__(self, bus: Bus, latest_ms: Callable[[], int] = no_limit) -> None:
        """`latest_ms`: see `parse_erasure`."""
        self.until_ms: dict[str, int] = {}
        self._latest_ms = latest_ms
        for partition, (start, stop) in bus.ends(ERASURES).items():
            for record in bus.scan(ERASURES, partition, start, stop):
                self._add(record)
        self._consumer = bus.consumer([ERASURES], f"erasures-{uuid.uuid4().hex}")

    def refresh(self) -> None:
        """Reads new records without waiting."""
        for record in self._consumer.poll(1_000, 0.0):
            self._add(record)

    def close(self) -> None:
        self._consumer.close()

    def _add(self, record: Record) -> None:
        erasure = parse_erasure(record, self._latest_ms())
        if isinstance(erasure, Rejection):
            log_rejected([RejectedRecord(record, *erasure)])
            return
        known = self.until_ms.get(erasure.user_id, erasure.at_ms)
        self.until_ms[erasure.user_id] = max(known, erasure.at_ms)


class ErasureJournal:
    """The erased users in a file, for a broker that loses its topics on restart."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, user_id: str, at_ms: int) -> None:
        """Adds an erasure unless one as late is already there."""
        if self.read().get(user_id, -1) >= at_ms:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = Erasure(user_id=user_id, at_ms=at_ms).model_dump_json()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # "\n" first: a torn line must not absorb this one
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, int]:
        """User id -> time of the erasure (ms). A line that is no erasure is set aside."""
        found: dict[str, int] = {}
        for erasure in self._erasures():
            found[erasure.user_id] = max(erasure.at_ms, found.get(erasure.user_id, 0))
        return found

    def _erasures(self) -> Iterator[Erasure]:
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            erasure = validate_message(_ERASURE, line)
            if isinstance(erasure, Rejection):
                name = f"line {number} of {self._path}"
                set_aside("erasure_line", name, f"{erasure.cause}, {erasure.detail}")
            else:
                yield erasure

    def restore(self, bus: Bus, latest_ms: Callable[[], int] = no_limit) -> int:
        """Republishes what the topic has lost; returns the number of records.

        Consumers would refuse times after `latest_ms`: these are set aside.
        """
        known = Erasures(bus, latest_ms)
        known.close()
        latest, lost = latest_ms(), []
        for user, at in self.read().items():
            if at > latest:
                set_aside("erasure_line", f"an erasure in {self._path}", f"at_ms {at} is to come")
            elif known.until_ms.get(user, -1) < at:
                lost.append(erasure_message(user, at))
        if lost:
            producer = bus.producer()
            producer.send(lost)
            producer.close()
        return len(lost)


def erase_user(user_id: str, at_ms: int, stores: Sequence[Erase]) -> None:
    """Erases the user from each store, such as `EventLog.erase` and `FeedbackStore.erase`."""
    for erase in stores:
        erase(user_id, at_ms)


def consume_erasures(
    bus: Bus,
    stores: Sequence[Erase],
    stop: Event,
    *,
    group: str,
    wait_on: tuple[type[Exception], ...] = (),
    latest_ms: Callable[[], int] = no_limit,
    on_rejected: OnRejected = log_rejected,
) -> None:
    """Applies every erasure of the topic to `stores` until `stop` is set.

    Commits after all stores have returned. Errors of `wait_on` (a store is down) and OSError are
    retried. A record that is no valid erasure, or that a store cannot apply, goes to
    `on_rejected`. Any other error ends the loop, and the next start applies the erasure again.
    """

    def erase(erasures: Sequence[Erasure]) -> None:
        for erasure in erasures:
            erase_user(erasure.user_id, erasure.at_ms, stores)

    def process(records: Sequence[Record]) -> bool:
        latest = latest_ms()
        rejected = apply_valid(
            records, lambda record: parse_erasure(record, latest), erase, stop, wait_on
        )
        if rejected:
            on_rejected(rejected)
        return rejected is not None

    consume(bus, ERASURES, group, process, stop, max_records=100)
