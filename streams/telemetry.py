"""Traces: one trace from an event to every fold.

Knows OpenTelemetry and the W3C trace context in message headers. Does not know the backends:
without an endpoint nothing is exported. Metrics are those of `streams.metrics`.

A message with one event carries the header `traceparent`. A batch carries the header
`traceparents`: a JSON list of [row, traceparent], for the rows that are traced.
"""

from __future__ import annotations

import logging
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

from streams.contract.trace_headers import TRACEPARENT_HEADER, TRACES_HEADER
from streams.metrics import SET_ASIDE

MAX_BATCH_SPANS = 16  # one batch may hold thousands of traced rows
_log = logging.getLogger(__name__)

_W3C = TraceContextTextMapPropagator()


def configure(
    service: str,
    otlp_endpoint: str = "",
    sample_ratio: float = 1.0,
    *,
    exporter: SpanExporter | None = None,
) -> TracerProvider:
    """Creates this process's tracer. Call once, before the first span; `shutdown` flushes it.

    `otlp_endpoint` is the base address of an OTLP/HTTP collector (http://127.0.0.1:4318). Without
    it and without `exporter`, no span is recorded. Spans with a sampled parent are sampled.
    """
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: service}),
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
    )
    if exporter is None and otlp_endpoint:
        exporter = _otlp_exporter(otlp_endpoint)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
        trace.set_tracer_provider(provider)
    return provider


def _otlp_exporter(endpoint: str) -> SpanExporter:
    # The import takes 0.1 s and is rarely needed.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


def name_thread(name: str) -> None:
    """Sets the kernel's name of this thread (15 bytes), for `top -H` and CPU accounting.

    Threads that it starts inherit the name. Does nothing without /proc.
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
    """Opens a span as the current one. `parent`: a traceparent; default: the current span."""
    context = context_of(parent) if parent else None
    with tracer().start_as_current_span(
        name, context=context, kind=kind, attributes=attributes
    ) as current:
        yield current


def traceparent() -> str | None:
    """The current span's traceparent; None outside any recorded or remote span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get(TRACEPARENT_HEADER)


def inject(headers: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """`headers` with the traceparent of the current span, for an outgoing message."""
    current = traceparent()
    out = dict(headers or {})
    if current is not None:
        out[TRACEPARENT_HEADER] = current.encode()
    return out


def extract(headers: Mapping[str, bytes]) -> str | None:
    """A message's traceparent; None if it is missing or malformed."""
    text = (headers.get(TRACEPARENT_HEADER) or b"").decode("ascii", "replace")
    return text if text and _is_valid(text) else None


def context_of(parent: str) -> Context:
    """The trace context of a traceparent; empty if that is malformed."""
    return _W3C.extract({TRACEPARENT_HEADER: parent}, context=Context())


def _is_valid(parent: str) -> bool:
    return trace.get_current_span(context_of(parent)).get_span_context().is_valid


def pack_traceparents(rows: Mapping[int, str]) -> dict[str, bytes]:
    """The header of a batch from row number -> traceparent; none if no row is traced."""
    return {TRACES_HEADER: orjson.dumps(sorted(rows.items()))} if rows else {}


def unpack_traceparents(headers: Mapping[str, bytes]) -> dict[int, str]:
    """The inverse of `pack_traceparents`; a malformed header gives no rows."""
    try:
        pairs = orjson.loads(headers.get(TRACES_HEADER) or b"[]")
        return {int(row): str(parent) for row, parent in pairs if _is_valid(str(parent))}
    except (ValueError, TypeError, OverflowError):
        return {}


def _one_row_per_trace(headers: Mapping[str, bytes]) -> list[tuple[int, str]]:
    """The first row of each trace: the events of one request share its trace."""
    first: dict[str, tuple[int, str]] = {}
    for row, parent in unpack_traceparents(headers).items():
        first.setdefault(parent[3:35], (row, parent))  # 00-<32 hex digits of trace id>-...
    return list(first.values())


@contextmanager
def batch_span(
    name: str, headers: Mapping[str, bytes], attributes: Mapping[str, str | int] | None = None
) -> Iterator[None]:
    """Opens a span in each trace of the batch's rows while the batch is handled.

    The first one is the current span, so that spans of stores join its trace; the others link to
    it. An exception marks all of them. Without traced rows there is no span.
    """
    rows = _one_row_per_trace(headers)[:MAX_BATCH_SPANS]
    with ExitStack() as spans:
        opened: list[Span] = []
        for row, parent in rows:
            links = [Link(opened[0].get_span_context())] if opened else []
            opened.append(
                tracer().start_span(
                    name,
                    context_of(parent),
                    SpanKind.CONSUMER,
                    {**(attributes or {}), "tidemill.row": row},
                    links,
                )
            )
            spans.callback(opened[-1].end)
        if opened:
            token = otel_context.attach(trace.set_span_in_context(opened[0]))
            spans.callback(otel_context.detach, token)
        try:
            yield
        except BaseException as error:
            for each in opened:
                each.record_exception(error)
                each.set_status(Status(StatusCode.ERROR, str(error)))
            raise


_MAX_NAMED = 10_000
_named: set[tuple[str, str]] = set()


def set_aside(kind: str, name: object, why: object) -> None:
    """Logs and counts, once in this process, that `name` (a file, a line, a batch) is skipped.

    What is set aside stays where it is, and everything beside it is read.
    """
    key = (kind, str(name))
    if key in _named or len(_named) >= _MAX_NAMED:
        return
    _named.add(key)
    SET_ASIDE.labels(kind).inc()
    _log.warning("%s is skipped, the rest is read: %s (%s)", name, str(why)[:300], kind)
