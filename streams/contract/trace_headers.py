"""Names of the message headers that carry trace context.

Knows two names and the rows of the second. Does not know how a trace is made
(`streams.telemetry`).
"""

from __future__ import annotations

import orjson

TRACEPARENT_HEADER = "traceparent"
"""W3C trace context of a message with one event."""
TRACES_HEADER = "traceparents"
"""Of a batch: JSON [[row, traceparent], ...], for the rows that are traced."""


def parse_traces(header: bytes | None) -> list[tuple[int, str]]:
    """The rows of TRACES_HEADER; none if it is missing, null or malformed."""
    try:
        pairs = orjson.loads(header or b"[]")
        return [(row, trace) for row, trace in pairs if type(row) is int and type(trace) is str]
    except (ValueError, TypeError):
        return []
