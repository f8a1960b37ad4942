"""Replay of dead letters: each repaired message is sent again once.

Knows dead letters, and the topic that remembers what was sent again. Does not know what a repair
changes.

A resent message that is refused again becomes a second dead letter with the same content. Content
that an earlier replay sent is therefore not sent again, whichever dead letter holds it, and a daily
replay changes nothing. Copies that were sent to the platform and refused are all sent again: of the
dead letters with one content, as many are failed resends as earlier replays sent of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from streams.bus.contract import Bus, Outgoing
from streams.contract.topics import DEAD_REPLAYED, RETENTION_MS, TopicSpec
from streams.ingest.dead_letters import DeadLetter, scan_dead_letters

_SEND_ROWS = 500
Repair = Callable[[DeadLetter], bytes | None]


@dataclass(frozen=True, slots=True)
class Replayed:
    """Dead letters that were resent, skipped by `repair`, truncated and so not resent, or known:
    sent before with the same content."""

    sent: int
    skipped: int
    truncated: int
    known: int = 0


def replay(
    bus: Bus,
    repair: Repair,
    *,
    progress: Callable[[int], None] = lambda _: None,
    again: bool = False,
) -> Replayed:
    """Resends repaired dead letters to their topics, with their keys and headers.

    `repair` returns the value to send, or None to skip a dead letter. It may return a complete
    value for a truncated one; a truncated value returned unchanged is counted as truncated, not
    sent. `again`: sends each content once more, which is harmless for what was admitted: a
    second event with the same user and id is a duplicate.
    """
    bus.ensure_topics([TopicSpec(DEAD_REPLAYED, 1, retention_ms=RETENTION_MS)])
    sent_before = Counter[bytes]() if again else _sent_before(bus)
    failed_resends = Counter(sent_before)
    producer = bus.producer()
    batch: list[Outgoing] = []
    sent = skipped = truncated = known = 0
    for count, dead in enumerate(scan_dead_letters(bus), start=1):
        content = _content_digest(_resent(dead, dead.record.value or b""))
        value = repair(dead)
        if failed_resends[content] > 0:
            failed_resends[content] -= 1
            known += 1
        elif value is None:
            skipped += 1
        elif value == dead.record.value and not dead.cause.complete:
            truncated += 1
        elif (digest := _content_digest(message := _resent(dead, value))) in sent_before:
            known += 1
        else:
            sent += 1
            if again:  # each content once
                sent_before[digest] += 1
            batch += [message, Outgoing(DEAD_REPLAYED, None, digest, partition=0)]
        if len(batch) >= _SEND_ROWS:
            producer.send(batch)
            batch = []
        progress(count)
    producer.send(batch)
    producer.close()
    return Replayed(sent, skipped, truncated, known)


def _resent(dead: DeadLetter, value: bytes) -> Outgoing:
    return Outgoing(dead.cause.topic, value, dead.record.key, headers=dict(dead.record.headers))


def _sent_before(bus: Bus) -> Counter[bytes]:
    """How often earlier replays sent each content."""
    return Counter(
        record.key
        for partition, (start, stop) in bus.ends(DEAD_REPLAYED).items()
        for record in bus.scan(DEAD_REPLAYED, partition, start, stop)
        if record.key is not None
    )


def _content_digest(message: Outgoing) -> bytes:
    """The sha256 (hex digits) of topic, key, value and headers."""
    headers = sorted((name, _hex(content)) for name, content in message.headers.items())
    stated = [message.topic, _hex(message.key), _hex(message.value), headers]
    return hashlib.sha256(orjson.dumps(stated)).hexdigest().encode()


def _hex(content: bytes | None) -> str | None:
    return None if content is None else content.hex()
