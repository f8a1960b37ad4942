"""What a commit says of the messages that were written with it, so that their loss is seen.

Knows its form: text beside the offset of an input partition. Does not know who writes it
(`streams.bus.kafka.producer`) nor what is done about a loss (`streams.ingest.recovery`).

A trail names, for every partition that a loop writes to, the last message that was written
there, and which input it was made of. It is committed in the same transaction; so a
message that it names and that no reader is shown was lost by the broker (ADR 0018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import orjson

Target = tuple[str, int]  # (topic, partition) that is written to
MAX_BYTES = 4_000  # of the 4,096 that a broker keeps beside an offset


class Step(NamedTuple):
    """One round at one target: its last message there, made of the input `first` to `until`."""

    last: int
    first: int
    until: int  # the offset after the last one


Trail = Mapping[Target, Step]


def after(trail: Trail, written: Mapping[Target, int], first: int, until: int) -> Trail:
    """The trail when a round of the input [first, until) wrote last at `written`."""
    return {**trail, **{target: Step(last, first, until) for target, last in written.items()}}


def encode(trail: Trail) -> str:
    """At most MAX_BYTES: where a loop has more targets, the longest unvisited are left out."""
    newest = sorted(trail.items(), key=lambda item: item[1].until, reverse=True)
    while len(text := _text(newest)) > MAX_BYTES:
        newest = newest[: len(newest) * MAX_BYTES // len(text)]
    return text


def _text(steps: list[tuple[Target, Step]]) -> str:
    found: dict[str, dict[str, list[int]]] = {}
    for (topic, partition), step in steps:
        found.setdefault(topic, {})[str(partition)] = list(step)
    return orjson.dumps(found).decode() if found else ""


def decode(text: str | None) -> Trail:
    """What `encode` made; empty for whatever else lies beside an offset."""
    try:
        found = orjson.loads(text or "{}")
        return {
            (topic, int(partition)): Step(*map(int, step))
            for topic, steps in found.items()
            for partition, step in steps.items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}
