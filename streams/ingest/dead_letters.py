"""Dead letters: what admission refused, kept whole enough to be mended and sent again.

Knows the letter's form: key, value and headers as they came, and one header more that says
cause and origin. Does not decide what is refused (`streams.ingest.admission`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from streams.bus.contract import Bus, Outgoing, Record
from streams.contract.topics import BEHAVIOUR_DEAD
from streams.ingest.partitioning import UNTIL_HEADER, until_mark

LETTER_HEADER = "tidemill-dead"
_OURS = {LETTER_HEADER, UNTIL_HEADER}
_KEEP_VALUE = 262_144
_KEEP_KEY = 8_192
_KEEP_HEADERS = 65_536
_SEND_ROWS = 500


class Cause(BaseModel):
    """Why and whence. `offset` counts within `epoch` of the topic; sha256 is of the whole."""

    model_config = ConfigDict(frozen=True)

    cause: str
    detail: str
    topic: str
    epoch: str
    partition: int
    offset: int
    refused_at_ms: int
    value_bytes: int
    value_sha256: str | None = None  # set where the value was cut
    key_bytes: int = 0
    key_sha256: str | None = None
    headers_dropped: bool = False

    @property
    def whole(self) -> bool:
        """Whether the letter holds everything that its sender wrote."""
        return not (self.value_sha256 or self.key_sha256 or self.headers_dropped)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One refused message: `record` with its own key, value and headers (cut where too long)."""

    cause: Cause
    record: Record


def letter(record: Record, cause: str, detail: str, epoch: str, now_ms: int) -> Outgoing:
    """The dead letter of a refused record, small enough for any topic.

    One that was refused because its user was erased says whence it came and nothing of
    what it held: a replay must not write an erased user's events down anew.
    """
    erased = cause == "erased"
    value, value_sha256 = (None, None) if erased else _cut(record.value, _KEEP_VALUE)
    key, key_sha256 = (None, None) if erased else _cut(record.key, _KEEP_KEY)
    size = sum(len(name) + len(content or b"") for name, content in record.headers)
    dropped = erased or size > _KEEP_HEADERS
    why = Cause(
        cause=cause,
        detail=detail,
        topic=record.topic,
        epoch=epoch,
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
    headers[UNTIL_HEADER] = until_mark(epoch, {record.partition: record.offset})
    headers[LETTER_HEADER] = why.model_dump_json(exclude_none=True).encode()
    return Outgoing(BEHAVIOUR_DEAD, value, key, partition=0, headers=headers)


def read_letter(record: Record) -> DeadLetter:
    """The letter in one record of `behaviour.dead`.

    Raises:
        ValueError: the record was not written by `letter`.
    """
    why = record.header(LETTER_HEADER)
    if why is None:
        raise ValueError(f"{record.topic}/{record.partition}/{record.offset} is no dead letter")
    own = tuple((name, content) for name, content in record.headers if name not in _OURS)
    return DeadLetter(Cause.model_validate_json(why), record._replace(headers=own))


def letters(bus: Bus) -> Iterator[DeadLetter]:
    """Every letter that lies in `behaviour.dead` now, oldest first."""
    for partition, (start, stop) in bus.ends(BEHAVIOUR_DEAD).items():
        for record in bus.scan(BEHAVIOUR_DEAD, partition, start, stop):
            yield read_letter(record)


Mend = Callable[[DeadLetter], bytes | None]


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many letters were sent again, passed over by `mend`, or cut and thus unsendable."""

    sent: int
    skipped: int
    cut: int


def replay(bus: Bus, mend: Mend, *, progress: Callable[[int], None] = lambda _: None) -> Replayed:
    """Sends mended letters again to where they came from, with their key and headers.

    `mend` returns the value to send, or None to pass a letter over. It may give a whole value
    for a letter that was cut; one that it returns unchanged is counted as cut, not sent.
    Sending twice is safe: the second event of the same user and id is a duplicate.
    """
    producer = bus.producer()
    waiting: list[Outgoing] = []
    sent = skipped = cut = 0
    for count, dead in enumerate(letters(bus), start=1):
        value = mend(dead)
        if value is None:
            skipped += 1
        elif value == dead.record.value and not dead.cause.whole:
            cut += 1
        else:
            sent += 1
            waiting.append(_again(dead, value))
        if len(waiting) >= _SEND_ROWS:
            producer.send(waiting)
            waiting = []
        progress(count)
    producer.send(waiting)
    producer.close()
    return Replayed(sent, skipped, cut)


def _again(dead: DeadLetter, value: bytes) -> Outgoing:
    return Outgoing(dead.cause.topic, value, dead.record.key, headers=dict(dead.record.headers))


def _cut(content: bytes | None, most: int) -> tuple[bytes | None, str | None]:
    if content is None or len(content) <= most:
        return content, None
    return content[:most], hashlib.sha256(content).hexdigest()
