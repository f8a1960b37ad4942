"""One trace leads from a request through its stages and the store into Triton."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deploy import wiring
from deploy.services import process
from deploy.services.triton import Triton
from models.client import ModelUnavailable
from models.echo import probe_tensors
from models.release.triton_repository import ModelRepository
from serving.clients.breaker import GuardedModels
from serving.clients.triton import TritonClient

EXPORT_WITHIN_S = 60.0


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[ReadableSpan]]]:
    """What this process exports, whichever tracer it comes from."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setattr(
        "serving.pipeline.runner._TRACER", provider.get_tracer("test"), raising=False
    )
    yield lambda: list(exporter.get_finished_spans())
    provider.shutdown()


def _lineage(span: ReadableSpan, of_id: dict[int, ReadableSpan]) -> list[str]:
    """Names from the span up to the root."""
    names = [span.name]
    while span.parent is not None and span.parent.span_id in of_id:
        span = of_id[span.parent.span_id]
        names.append(span.name)
    return names


def test_reads_and_calls_stand_under_their_stages_in_the_requests_trace(
    harness: Any, spans: Callable[[], list[ReadableSpan]]
) -> None:
    caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    harness.client.post("/v1/feed", json={"user_id": "u-private"}, headers={"traceparent": caller})
    own = [s for s in spans() if f"{s.context.trace_id:032x}" == caller.split("-")[1]]
    of_id = {span.context.span_id: span for span in own}
    paths = [_lineage(span, of_id) for span in own]
    infer = next(path for path in paths if path[0] == "infer ranker")
    read = next(path for path in paths if path[0] == "read user")
    for path in (infer, read):
        assert path[1].startswith("stage ")
        assert path[-2:] == ["surface feed", "POST /v1/feed"]
    call = next(span for span in own if span.name == "infer ranker")
    assert harness.models.headers[-1]["traceparent"].split("-")[2] == f"{call.context.span_id:016x}"
    assert "u-private" not in " ".join(span.to_json() for span in own)


def test_a_failed_call_is_marked_without_what_it_was_asked(
    harness: Any, spans: Callable[[], list[ReadableSpan]]
) -> None:
    harness.models.down = True
    harness.feed()
    failed = [span for span in spans() if span.name == "infer ranker"]
    assert {span.status.description for span in failed} == {ModelUnavailable.__name__}
    assert all(not span.events for span in failed)


def test_reads_outside_any_request_open_no_trace(
    harness: Any, spans: Callable[[], list[ReadableSpan]]
) -> None:
    before = len(spans())
    harness.gateway.store.read("user", ["u1"], 1)
    assert [span.name for span in spans()[before:] if span.name.startswith("read")] == []


@pytest.fixture
def collector() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OTLP receiver for Triton, which sends JSON."""
    seen: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in body["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    seen.extend(scope["spans"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.servers
def test_tritons_own_spans_join_under_the_call(
    tmp_path: Path,
    triton_overlay: Path,
    collector: tuple[str, list[dict[str, Any]]],
    spans: Callable[[], list[ReadableSpan]],
) -> None:
    assert triton_overlay.exists()
    endpoint, seen = collector
    server = Triton(
        tmp_path,
        tmp_path / "repository",
        otlp_endpoint=endpoint,
        self_test=wiring.echo_answers,  # ready once the model answers
    )
    ModelRepository(server.repository).add_echo()
    with process.running(server, 120.0):
        models = GuardedModels(TritonClient(server.grpc_address))
        with trace.get_tracer("test").start_as_current_span("stage ranker") as stage:
            models.infer("echo", probe_tensors(1), timeout_s=30.0)
        trace_id = f"{stage.get_span_context().trace_id:032x}"

        def joined() -> list[dict[str, Any]]:
            return [span for span in list(seen) if span["traceId"].lower() == trace_id]

        assert process.wait_until(lambda: bool(joined()), EXPORT_WITHIN_S)
        call = next(span for span in spans() if span.name == "infer echo")
        wanted = f"{call.context.span_id:016x}"

        def parents() -> set[str]:
            return {span.get("parentSpanId", "").lower() for span in joined()}

        assert process.wait_until(lambda: wanted in parents(), EXPORT_WITHIN_S), parents()
    server.sweep()
