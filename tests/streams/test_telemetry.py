"""One event of a thousand can be traced from its producer to its fold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from streams import telemetry
from streams.contract.trace_headers import TRACEPARENT_HEADER, TRACES_HEADER

OTHER = "00-1bf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00"


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[TracerProvider], None]]:
    """Sets a provider for one test only."""
    used: list[TracerProvider] = []

    def use(own: TracerProvider) -> None:
        used.append(own)
        monkeypatch.setattr(telemetry, "tracer", lambda: own.get_tracer("tidemill"))

    yield use
    for own in used:
        own.shutdown()


@pytest.fixture
def spans(provider: Callable[[TracerProvider], None]) -> Callable[[], list[ReadableSpan]]:
    exporter = InMemorySpanExporter()
    own = telemetry.configure("test")
    own.add_span_processor(SimpleSpanProcessor(exporter))
    provider(own)
    return lambda: list(exporter.get_finished_spans())


def _trace_of(parent: str) -> int:
    return int(parent.split("-")[1], 16)


def _context(span: ReadableSpan) -> trace.SpanContext:
    assert span.context is not None
    return span.context


def test_one_trace_runs_from_an_event_in_a_batch_to_its_fold(
    spans: Callable[[], list[ReadableSpan]],
) -> None:
    with telemetry.span("post /v1/events"):
        sent = telemetry.inject({"content-type": b"json"})
    parent = telemetry.extract(sent)
    assert parent is not None
    headers = telemetry.pack_traceparents({617: parent})
    with (
        telemetry.batch_span("handle events.by_user", headers, {"rows": 1_000}),
        telemetry.span("fold user"),
    ):
        pass
    post, fold, handle = spans()
    assert {_context(span).trace_id for span in (post, handle, fold)} == {_context(post).trace_id}
    assert handle.parent is not None
    assert fold.parent is not None
    assert handle.parent.span_id == _context(post).span_id
    assert fold.parent.span_id == _context(handle).span_id
    assert handle.attributes == {"rows": 1_000, "tidemill.row": 617}
    assert sent["content-type"] == b"json"


def test_every_traced_row_of_a_batch_keeps_its_own_trace(
    spans: Callable[[], list[ReadableSpan]],
) -> None:
    parents = {row: f"00-{row + 1:032x}-{row + 1:016x}-01" for row in range(5)}
    with telemetry.batch_span("handle", telemetry.pack_traceparents(parents)):
        pass
    assert sorted(_context(span).trace_id for span in spans()) == [1, 2, 3, 4, 5]
    assert sum(len(span.links) for span in spans()) == 4


def test_an_error_is_marked_in_every_trace(
    spans: Callable[[], list[ReadableSpan]],
) -> None:
    headers = telemetry.pack_traceparents({0: REMOTE, 1: OTHER})
    with pytest.raises(OSError, match="down"), telemetry.batch_span("handle", headers):
        raise OSError("store is down")
    assert [span.status.status_code for span in spans()] == [StatusCode.ERROR] * 2


def test_rows_of_one_trace_share_a_span(spans: Callable[[], list[ReadableSpan]]) -> None:
    rows = dict.fromkeys(range(1_000), REMOTE) | {700: OTHER}
    with telemetry.batch_span("handle", telemetry.pack_traceparents(rows)):
        pass
    assert {_context(s).trace_id for s in spans()} == {_trace_of(REMOTE), _trace_of(OTHER)}
    assert len(spans()) == 2


def test_a_parent_that_was_not_sampled_stays_so(spans: Callable[[], list[ReadableSpan]]) -> None:
    with telemetry.batch_span("handle", telemetry.pack_traceparents({0: UNSAMPLED, 1: REMOTE})):
        pass
    assert [_context(span).trace_id for span in spans()] == [_trace_of(REMOTE)]


def test_a_batch_without_traced_rows_opens_no_span(
    spans: Callable[[], list[ReadableSpan]],
) -> None:
    with telemetry.batch_span("handle", {}):
        assert telemetry.traceparent() is None
    assert spans() == []


@given(st.binary(max_size=60) | st.just(orjson.dumps([[1], "x", [REMOTE, 1], None])))
def test_malformed_headers_are_ignored(value: bytes) -> None:
    assert telemetry.unpack_traceparents({TRACES_HEADER: value}) == {}
    assert telemetry.extract({TRACEPARENT_HEADER: value}) is None


def test_the_batch_header_is_json_and_round_trips() -> None:
    assert orjson.loads(telemetry.pack_traceparents({3: REMOTE})[TRACES_HEADER]) == [[3, REMOTE]]
    assert telemetry.unpack_traceparents(
        telemetry.pack_traceparents({3: REMOTE, 7: UNSAMPLED})
    ) == {3: REMOTE, 7: UNSAMPLED}
    assert telemetry.pack_traceparents({}) == {}


def test_spans_reach_a_collector_over_otlp_http(
    provider: Callable[[TracerProvider], None],
) -> None:
    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = telemetry.configure("log-writer", f"http://127.0.0.1:{server.server_port}/")
    provider(own)
    with telemetry.batch_span("handle events.by_user", telemetry.pack_traceparents({5: REMOTE})):
        pass
    own.shutdown()
    server.shutdown()
    server.server_close()
    ((path, request),) = received
    (resource,) = request.resource_spans
    (span,) = resource.scope_spans[0].spans
    assert path == "/v1/traces"
    assert span.trace_id.hex() == REMOTE.split("-")[1]
    assert span.parent_span_id.hex() == REMOTE.split("-")[2]
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert names["service.name"] == "log-writer"
