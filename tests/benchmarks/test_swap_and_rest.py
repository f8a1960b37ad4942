"""What `swap` and `rest` measure with: steady load, and processes seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.rest.usage import cores, is_own, name_of, usage
from benchmarks.swap.load import Reply, SteadyLoad, causes, failed, p99_ms, with_fallback
from deploy.services.process import free_port, wait_until

BUSY = "import time\nprint('up', flush=True)\nwhile True: pass"


def test_processes_are_named_by_what_they_run() -> None:
    own = ["python", "-m", "deploy.process", "kafka-requests", "--home", "h", "--instance", "2"]
    assert name_of(own) == "kafka-requests-2"
    assert name_of(own[:6]) == "kafka-requests"
    assert name_of(["/x/valkey-server 127.0.0.1:29683"]) == "store"
    assert name_of(["/x/triton_python_backend_stub", "/models/ranker/1/model.py"]) == "triton"
    assert name_of(["/x/tritonserver", "--http-port=1"]) == "triton"
    assert name_of(["/x/bin/java", "kafka.Kafka"]) == "broker"
    assert name_of(["/x/tansu", "broker", "--listener-url", "u"]) == "broker"
    assert [name for name in ("gateway", "supervisor", "store", "triton") if is_own(name)] == [
        "gateway",
        "supervisor",
    ]


def test_a_busy_child_is_counted_with_its_cpu_and_memory() -> None:
    argv = [sys.executable, "-c", BUSY, "deploy.process", "batcher"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            before = usage(os.getpid())
            assert wait_until(
                lambda: usage(os.getpid())["batcher"].cpu_s > before["batcher"].cpu_s, 30
            )
            after = usage(os.getpid())
        finally:
            child.kill()
    assert set(after) >= {"batcher", "supervisor"}
    assert after["batcher"].pss_mb > 1.0
    used = cores(before, after, 2.0)["batcher"]
    assert used == pytest.approx((after["batcher"].cpu_s - before["batcher"].cpu_s) / 2.0)


class _Feeds(BaseHTTPRequestHandler):
    """Every third reply has a fallback, every seventh is an error."""

    count = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with _Feeds.lock:
            _Feeds.count += 1
            number = _Feeds.count
        body = b'{"fallbacks": [{"stage": "ranker"}]}' if number % 3 == 0 else b'{"fallbacks": []}'
        self.send_response(429 if number % 7 == 0 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.fixture
def feeds() -> Iterator[int]:
    """The port of a gateway that errs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Feeds)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_steady_load_counts_errors_and_fallbacks(feeds: int) -> None:
    began = time.monotonic()
    with SteadyLoad(feeds, ["u1", "u2"], per_s=200.0) as load:
        assert wait_until(lambda: len(load.replies) >= 42, 60)
    replies = load.between(began, time.monotonic())
    count = len(replies)
    assert [reply.sent_s for reply in replies] == sorted(reply.sent_s for reply in replies)
    assert failed(replies) == count // 7
    assert causes(replies) == f"429: {count // 7}"
    assert with_fallback(replies) == count // 3 - count // 21
    assert load.between(0.0, began) == []


def test_a_gateway_that_is_gone_fails_requests_and_does_not_end_the_load() -> None:
    with SteadyLoad(free_port(), ["u1"], per_s=200.0) as load:
        assert wait_until(lambda: len(load.replies) >= 5, 60)
    assert causes(load.replies) == f"none: {len(load.replies)}"


def test_latency_counts_unanswered_requests() -> None:
    replies = [Reply(0.0, 0.01, 200, 0)] * 90 + [Reply(0.0, 10.0, 0, 0)] * 10
    assert p99_ms(replies) == pytest.approx(10_000.0)
