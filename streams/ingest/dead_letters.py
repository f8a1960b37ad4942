"""Dead letters: messages of any input that were refused, kept to be repaired and resent.

Knows their form: key, value and headers as received, and one more header with cause and origin.
Does not decide what is refused (`streams.ingest.admission`, `streams.codec.inputs`) nor how it is
sent again (`streams.ingest.replay`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from streams.bus.contract import Bus, Outgoing
from streams.bus.polled import Record
from streams.codec.inputs import RejectedRecord
from streams.contract.bounds import Count
from streams.contract.clock import Clock
from streams.contract.topics import BEHAVIOUR_DEAD
from streams.ingest.partitioning import SOURCE_MARK_HEADER, source_mark
from streams.metrics import DEAD_LETTERS
from streams.telemetry import set_aside

DEAD_LETTER_HEADER = "tidemill-dead"
_OWN_HEADERS = {DEAD_LETTER_HEADER, SOURCE_MARK_HEADER}
_MAX_VALUE_BYTES = 262_144
_MAX_KEY_BYTES = 8_192
_MAX_HEADERS_BYTES = 65_536
_log = logging.getLogger(__name__)


class Cause(BaseModel):
    """Cause and origin. `offset` is within the topic of id `topic_id`; sha256 is of the whole."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, serialize_by_alias=True)

    cause: str
    detail: str
    topic: str
    topic_id: str = Field(alias="epoch")
    partition: Count
    offset: Count
    refused_at_ms: Count
    value_bytes: Count
    value_sha256: str | None = None  # set if the value was truncated
    key_bytes: Count = 0
    key_sha256: str | None = None
    headers_dropped: bool = False

    @property
    def complete(self) -> bool:
        """Whether the dead letter holds everything that its sender wrote."""
        return not (self.value_sha256 or self.key_sha256 or self.headers_dropped)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused message: `record` has its own key, value and headers (truncated if too long)."""

    cause: Cause
    record: Record


def dead_letter_message(
    record: Record, cause: str, detail: str, topic_id: str, now_ms: int
) -> Outgoing:
    """The dead letter of a refused record, small enough for any topic.

    If the record was refused because its user was erased, the dead letter has its origin and no
    content: a replay must not bring an erased user's events back.
    """
    erased = cause == "erased"
    value, value_sha256 = (None, None) if erased else _truncated(record.value, _MAX_VALUE_BYTES)
    key, key_sha256 = (None, None) if erased else _truncated(record.key, _MAX_KEY_BYTES)
    size = sum(len(name) + len(content or b"") for name, content in record.headers)
    dropped = erased or size > _MAX_HEADERS_BYTES
    why = Cause(
        cause=cause,
        detail=detail,
        topic=record.topic,
        topic_id=topic_id,
        partition=record.partition,
        offset=record.offset,
        refused_at_ms=now_ms,
        value_bytes=len(record.value or b""),
        value_sha256=value_sha256,
        key_bytes=len(record.key or b""),
        key_sha256=key_sha256,
        headers_dropped=dropped,
    )
    headers = {} if dropped else dict(record.headers)
    headers[SOURCE_MARK_HEADER] = source_mark(topic_id, {record.partition: record.offset})
    headers[DEAD_LETTER_HEADER] = why.model_dump_json(exclude_none=True).encode()
    return Outgoing(BEHAVIOUR_DEAD, value, key, partition=0, headers=headers)


def parse_dead_letter(record: Record) -> DeadLetter:
    """The dead letter in a record of `behaviour.dead`.

    Raises:
        ValueError: the record was not written by `dead_letter_message`.
    """
    why = record.header(DEAD_LETTER_HEADER)
    if why is None:
        raise ValueError(f"{record.topic}/{record.partition}/{record.offset} is no dead letter")
    own = tuple((name, content) for name, content in record.headers if name not in _OWN_HEADERS)
    return DeadLetter(Cause.model_validate_json(why), record._replace(headers=own))


def scan_dead_letters(bus: Bus) -> Iterator[DeadLetter]:
    """Every dead letter in `behaviour.dead` now, oldest first. Foreign records are set aside."""
    for partition, (start, stop) in bus.ends(BEHAVIOUR_DEAD).items():
        for record in bus.scan(BEHAVIOUR_DEAD, partition, start, stop):
            try:
                yield parse_dead_letter(record)
            except ValueError as error:
                name = f"{record.topic}/{record.partition}/{record.offset}"
                set_aside("dead_letter", name, error)


class DeadLetterWriter:
    """Writes rejected records to `behaviour.dead`, counts them and names each in a log line.

    One consumer of a topic writes them; others pass `streams.codec.inputs.log_rejected`.
    """

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus, self._clock = bus, clock
        self._producer = bus.producer()

    def __call__(self, rejected: Sequence[RejectedRecord]) -> None:
        """Returns when all are written. Raises `BusError`."""
        ids = self._bus.topic_ids({each.record.topic for each in rejected})
        now_ms = self._clock.now_ms()
        self._producer.send(
            [
                dead_letter_message(record, cause, detail, ids[record.topic], now_ms)
                for record, cause, detail in rejected
            ]
        )
        for record, cause, detail in rejected:
            count_dead_letter(record.topic, cause)
            place = f"{record.topic}/{record.partition}/{record.offset}"
            _log.warning("%s is a dead letter: %s, %s", place, cause, detail)


def count_dead_letter(topic: str, cause: str) -> None:
    DEAD_LETTERS.labels(topic, cause).inc()


def _truncated(content: bytes | None, most: int) -> tuple[bytes | None, str | None]:
    """The first `most` bytes, and the sha256 of the whole if it is longer."""
    if content is None or len(content) <= most:
        return content, None
    return content[:most], hashlib.sha256(content).hexdigest()
