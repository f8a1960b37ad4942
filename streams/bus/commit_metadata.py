"""Metadata beside a committed offset: what was written with it, so that a loss is detected.

Knows its text form. Does not know who commits it (`streams.bus.transaction`) nor how lost
messages are rewritten (`streams.ingest.recovery`).

For each partition that a loop writes to, the metadata names the last message there and the
input it was made of. It is committed in the same transaction as the messages. A message that
it names and that no reader can see was therefore lost by the broker (ADR 0018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import orjson

TopicPartition = tuple[str, int]
MAX_BYTES = 4_000  # a broker keeps at most 4,096 beside an offset


class WrittenRange(NamedTuple):
    """One write to one target: its last message, made of the input offsets [first, until)."""

    last: int
    first: int
    until: int


CommitMetadata = Mapping[TopicPartition, WrittenRange]
"""The last write to each target, beside the offset of one input partition."""


def with_written(
    metadata: CommitMetadata, written: Mapping[TopicPartition, int], first: int, until: int
) -> CommitMetadata:
    """The metadata after a write: `written` is the last offset at each target, made of the
    input offsets [first, until)."""
    made = {target: WrittenRange(last, first, until) for target, last in written.items()}
    return {**metadata, **made}


def encode(metadata: CommitMetadata) -> str:
    """At most MAX_BYTES: with more targets, those written longest ago are left out."""
    newest = sorted(metadata.items(), key=lambda item: item[1].until, reverse=True)
    while len(text := _to_text(newest)) > MAX_BYTES:
        newest = newest[: len(newest) * MAX_BYTES // len(text)]
    return text


def _to_text(ranges: list[tuple[TopicPartition, WrittenRange]]) -> str:
    found: dict[str, dict[str, list[int]]] = {}
    for (topic, partition), written in ranges:
        found.setdefault(topic, {})[str(partition)] = list(written)
    return orjson.dumps(found).decode() if found else ""


def decode(text: str | None) -> CommitMetadata:
    """The inverse of `encode`; empty for any other text beside an offset."""
    try:
        found = orjson.loads(text or "{}")
        return {
            (topic, int(partition)): WrittenRange(*map(int, written))
            for topic, ranges in found.items()
            for partition, written in ranges.items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}
