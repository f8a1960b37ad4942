"""The whole real stack, started once: broker, Valkey, Triton, workers, gateway; models trained on it."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deploy import wiring
from deploy.settings import Settings, TelemetrySettings
from deploy.simulation.history import History, history
from deploy.simulation.movielens import DataUnavailable, MovieLens, load
from deploy.simulation.replay import replay
from deploy.stack import Stack
from streams.event_log import EventLog

ROOT = Path(__file__).resolve().parents[2]
USERS = 150  # replayed: enough to train each model


@dataclass
class Spans:
    """Spans that a collector received: (service, span name, trace id), in order of arrival."""

    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            service = names.get("service.name", "?")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.seen.append((service, span.name, span.trace_id.hex()))

    def take_json(self, body: bytes) -> None:
        for resource in json.loads(body)["resourceSpans"]:
            names = {
                a["key"]: a["value"].get("stringValue") for a in resource["resource"]["attributes"]
            }
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    self.seen.append((names["service.name"], span["name"], span["traceId"].lower()))

    def services(self, trace_id: str) -> set[str]:
        return {service for service, _, trace in self.seen if trace == trace_id}


@dataclass
class Loop:
    """A running stack and what was replayed into it."""

    stack: Stack
    past: History
    spans: Spans
    http: httpx.Client

    @property
    def settings(self) -> Settings:
        return self.stack.settings

    def ask(self, surface: str, **body: object) -> dict[str, Any]:
        answer = self.http.post(f"/v1/{surface}", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def features(self, user_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/users/{user_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def send(self, *events: dict[str, object], headers: dict[str, str] | None = None) -> None:
        answer = self.http.post("/v1/events", json=list(events), headers=headers)
        assert answer.status_code == 202, answer.text

    def event(self, user: str, kind: str, **fields: object) -> dict[str, object]:
        """An event that happens now."""
        now = wiring.clock(self.settings.clock).now_ms()
        return {
            "event_id": uuid.uuid4().hex, "user_id": user, "kind": kind, "event_time_ms": now,
        } | fields  # fmt: skip

    def users(self, n: int) -> list[str]:
        """The first `n` users with a replayed history."""
        return list(self.past.frame["user_id"].unique().sort()[:n])

    def kill(self, service: str) -> None:
        pid = next(s.pid for s in self.stack.status() if s.name == service)
        assert pid is not None
        os.kill(pid, 9)

    def counts_are(self, user: str, before: dict[str, Any]) -> bool:
        """Whether the user's features can be read and count what they counted before."""
        answer = self.http.get(f"/v1/users/{user}")
        now = answer.json().get("features", {}) if answer.status_code == 200 else {}
        return bool(now) and all(
            now[f"{kind}_count_all"] == before[f"{kind}_count_all"]
            for kind in ("play", "long_view", "like", "order", "query_click")
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`tidemill …` on this stack, in a process of its own."""
        environment = os.environ | {
            "TIDEMILL_HOME": str(self.settings.home), "OMP_NUM_THREADS": "1", "COLUMNS": "200",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "deploy.cli.main", *words], cwd=ROOT, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip


Eventually = Callable[[Callable[[], object], float, str], None]


@pytest.fixture(scope="package")
def eventually() -> Eventually:
    """Waits for a condition; fails with its description."""

    def wait(condition: Callable[[], object], within_s: float, what: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
            time.sleep(0.1)

    return wait


@pytest.fixture(scope="package")
def collector() -> Iterator[tuple[str, Spans]]:
    """A real OTLP receiver over HTTP."""
    spans = Spans()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            if "json" in self.headers.get("Content-Type", ""):
                spans.take_json(body)  # Triton's form
            else:
                spans.take(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()


@pytest.fixture(scope="package")
def past_data() -> MovieLens:
    """The replayed data, of `USERS` users."""
    try:
        whole = load()
    except DataUnavailable as reason:
        pytest.skip(str(reason))
    few = whole.ratings["user_id"].unique().sort()[:USERS]
    return MovieLens(whole.films, whole.ratings.filter(pl.col("user_id").is_in(few.implode())))


@pytest.fixture(scope="package")
def loop(
    tmp_path_factory: pytest.TempPathFactory,
    triton_overlay: Path,
    collector: tuple[str, Spans],
    past_data: MovieLens,
    eventually: Eventually,
) -> Iterator[Loop]:
    """The stack with the history folded and the three models trained and live."""
    assert triton_overlay.exists()
    endpoint, spans = collector
    home = tmp_path_factory.mktemp("loop") / "home"
    settings = Settings(home=home, telemetry=TelemetrySettings(otlp_endpoint=endpoint))
    with Stack(settings) as stack, httpx.Client(base_url=stack.page, timeout=30) as client:
        hour_ago = wiring.clock(stack.settings.clock).now_ms() - 3_600_000
        past = history(0, end_ms=hour_ago, data=past_data)
        running = Loop(stack, past, spans, client)
        replay(
            wiring.bus(stack.settings), past, stack.settings.home,
            progress=lambda *_: None, log_dir=stack.settings.log_dir,
        )  # fmt: skip
        log = EventLog(stack.settings.log_dir)
        eventually(lambda: len(log.read()) >= len(past.frame), 120, "the history in the log")
        eventually(lambda: _folded(running), 120, "the history in the features")
        for words in (("models", "train"), ("models", "promote")):
            done = running.command(*words)
            assert done.returncode == 0, done.stdout + done.stderr
        eventually(lambda: not _fallbacks(running), 60, "the models answer")
        yield running


def _folded(loop: Loop) -> bool:
    """Each user's last event has been folded."""
    last = loop.past.frame.group_by("user_id").agg(pl.col("event_time_ms").max())
    frame = wiring.feature_store(loop.settings).read("user", last["user_id"].to_list(), 0)
    return bool((frame.last_event_ms == last["event_time_ms"].to_numpy()).all())


def _fallbacks(loop: Loop) -> list[object]:
    user = loop.past.frame["user_id"][0]
    return list(loop.ask("feed", user_id=user, k=5)["fallbacks"])
