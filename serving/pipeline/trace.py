"""The trace context as headers, for model calls, messages and events.

Knows W3C trace context through OpenTelemetry's propagator. Does not export anything:
without a configured provider the headers are empty.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context


def current_headers() -> dict[str, str]:
    """`traceparent` (and `tracestate`) of the current span; {} without one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def current_header_bytes() -> dict[str, bytes]:
    """`current_headers` as message headers."""
    return {name: value.encode() for name, value in current_headers().items()}


def context_of(headers: Mapping[str, str]) -> Context:
    """The caller's trace context, in which to start a span."""
    return propagate.extract(dict(headers))


def tracer() -> trace.Tracer:
    return trace.get_tracer("tidemill.serving")
