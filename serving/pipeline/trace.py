"""The trace context as headers, for model calls, messages and events.

Knows W3C trace context through OpenTelemetry's propagator, and which part of a request a span may
hold. Does not export anything:
without a configured provider the headers are empty.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context

from serving.pipeline.requests import RequestContext


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


def record_context(context: RequestContext) -> None:
    """Puts device, page and locale on the current span; an item would name what a user looks at."""
    stated = context.model_dump(exclude={"item_id"}, exclude_none=True)
    trace.get_current_span().set_attributes(
        {f"tidemill.context.{name}": value for name, value in stated.items()}
    )


def tracer() -> trace.Tracer:
    return trace.get_tracer("tidemill.serving")
