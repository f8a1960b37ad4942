"""Traces and metrics: one trace from an event to every fold, one registry of numbers.

Knows OpenTelemetry, the W3C trace context in message headers and the metrics' names.
Does not know who reads them: without an endpoint nothing is exported, and nothing here
is needed to run.

A message with one event carries the header `traceparent`. A batch carries the header
`traceparents`: a JSON list of [row, traceparent], for the rows that are traced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import orjson
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter, Histogram

TRACEPARENT = "traceparent"
TRACEPARENTS = "traceparents"
TRACED_ROWS = 16  # a batch's spans are capped: one batch may hold thousands of traced rows

EVENTS_HANDLED = Counter(
    "tidemill_events_handled_total", "Admitted events whose handler has returned", ["topic"]
)
HANDLE_SECONDS = Histogram(
    "tidemill_handle_seconds", "Time in a batch's handler, one attempt", ["topic"]
)
RETRIES = Counter(
    "tidemill_handle_retries_total", "Batches that had to be handled again", ["topic"]
)
FEEDBACK_REFUSED = Counter(
    "tidemill_feedback_refused_total", "Events whose impression token was not believed", ["cause"]
)

_W3C = TraceContextTextMapPropagator()


def configure(
    service: str,
    otlp_endpoint: str = "",
    sample_ratio: float = 1.0,
    *,
    exporter: SpanExporter | None = None,
) -> TracerProvider:
    """Makes this process's tracer. Call once, before the first span; `shutdown` flushes it.

    `otlp_endpoint` is an OTLP/HTTP collector's base address (http://127.0.0.1:4318); empty
    and without `exporter`, no span is recorded. A sampled parent keeps its trace whole.
    """
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: service}),
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
    )
    if exporter is None and otlp_endpoint:
        exporter = _otlp(otlp_endpoint)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        trace.set_tracer_provider(provider)
    return provider


def _otlp(endpoint: str) -> SpanExporter:
    # Imported here: it costs a tenth of a second and is seldom wanted.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


def name_thread(name: str) -> None:
    """Tells the kernel this thread's name (15 bytes of it), for `top -H` and whoever counts CPU.

    Threads that it starts inherit the name. Nothing happens where there is no /proc.
    """
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15])


def tracer() -> trace.Tracer:
    return trace.get_tracer("tidemill")


@contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, str | int | float | bool] | None = None,
) -> Iterator[Span]:
    """A span as the current one; `parent` is a traceparent, else the current span is."""
    context = context_of(parent) if parent else None
    with tracer().start_as_current_span(
        name, context=context, kind=kind, attributes=attributes
    ) as current:
        yield current


def traceparent() -> str | None:
    """The current span's traceparent; None outside of any recorded or remote span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get(TRACEPARENT)


def inject(headers: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """The headers of a message that goes out within the current span."""
    current = traceparent()
    out = dict(headers or {})
    if current is not None:
        out[TRACEPARENT] = current.encode()
    return out


def extract(headers: Mapping[str, bytes]) -> str | None:
    """A message's traceparent; None when it has none that is well-formed."""
    text = headers.get(TRACEPARENT, b"").decode("ascii", "replace")
    return text if text and _is_valid(text) else None


def context_of(parent: str) -> Context:
    """The trace context that a traceparent names; an ill-formed one gives an empty context."""
    return _W3C.extract({TRACEPARENT: parent}, context=Context())


def _is_valid(parent: str) -> bool:
    return trace.get_current_span(context_of(parent)).get_span_context().is_valid


def pack(rows: Mapping[int, str]) -> dict[str, bytes]:
    """The header of a batch: row number -> traceparent. Nothing when no row is traced."""
    return {TRACEPARENTS: orjson.dumps(sorted(rows.items()))} if rows else {}


def unpack(headers: Mapping[str, bytes]) -> dict[int, str]:
    """`pack`'s inverse; a header that is not of its form names no rows."""
    try:
        pairs = orjson.loads(headers.get(TRACEPARENTS, b"[]"))
        return {int(row): str(parent) for row, parent in pairs if _is_valid(str(parent))}
    except (ValueError, TypeError):
        return {}


def _one_per_trace(headers: Mapping[str, bytes]) -> list[tuple[int, str]]:
    """Each trace's first row: events that one request posted share its trace."""
    first: dict[str, tuple[int, str]] = {}
    for row, parent in unpack(headers).items():
        first.setdefault(parent[3:35], (row, parent))  # 00-<32 hex digits of trace id>-...
    return list(first.values())


@contextmanager
def batch_span(
    name: str, headers: Mapping[str, bytes], attributes: Mapping[str, str | int] | None = None
) -> Iterator[None]:
    """Spans of one batch's handling: one in every trace that a row of it belongs to.

    All last as long as the handling. The first is the current span within the block, so
    that the store's and other parts' spans join that row's trace; the others link to it.
    An exception marks all of them. Without traced rows there is no span.
    """
    rows = _one_per_trace(headers)[:TRACED_ROWS]
    with ExitStack() as spans:
        opened: list[Span] = []
        for row, parent in rows:
            links = [Link(opened[0].get_span_context())] if opened else []
            opened.append(
                tracer().start_span(
                    name, context_of(parent), SpanKind.CONSUMER,
                    {**(attributes or {}), "tidemill.row": row}, links,
                )
            )  # fmt: skip
            spans.callback(opened[-1].end)
        if opened:
            token = otel_context.attach(trace.set_span_in_context(opened[0]))
            spans.callback(otel_context.detach, token)
        try:
            yield
        except BaseException as error:
            for one in opened:
                one.record_exception(error)
                one.set_status(Status(StatusCode.ERROR, str(error)))
            raise
