"""`tidemill doctor` on a sick stack names the part and the remedy, and exits with 1.

Broker, store and batcher are real and are killed or frozen; a stand-in answers for the gateway
and for Triton, whose faults the whole stack's tests make (`tests/e2e`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import state, wiring
from deploy.doctor import data, processes, stack
from deploy.doctor.finding import Finding
from deploy.processes.own import OwnProcess
from deploy.services.process import Child, Command, Service, free_port, start, wait_until
from deploy.services.tansu import Tansu
from deploy.services.valkey import Valkey
from deploy.settings import Settings
from models.echo import SIGNATURE
from models.release.store import ReleaseStore
from streams.bus.contract import Bus, Outgoing
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.contract.topics import BEHAVIOUR, topic_specs
from streams.ingest.dead_letters import dead_letter_message

WELL = {"broker": {"status": "up"}, "store": {"status": "up"}, "models": {"status": "up"}}
RUNTIME = "models.echo:EchoRuntime"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Answers:
    """What the stand-in for gateway, Triton and a process's metrics answers."""

    parts: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(WELL))
    clock_ahead_s: float = 0.0
    down: set[str] = field(default_factory=set)

    def reply(self, path: str) -> bytes | None:
        if path in self.down:
            return None
        if path == "/metrics":
            now = time.time() + self.clock_ahead_s
            return f"tidemill_clock_timestamp_seconds {now!r}\n".encode()
        return json.dumps({"status": "ok", "parts": self.parts}).encode()


@dataclass
class Home:
    """A stack's home: real servers, their records, and what the stand-in answers."""

    path: Path
    settings: Settings
    children: dict[str, Child]
    answers: Answers

    def found(self) -> dict[str, Finding]:
        return {finding.name: finding for finding in stack.examine(self.path)}

    def sick(self) -> dict[str, Finding]:
        return {name: finding for name, finding in self.found().items() if not finding.ok}

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.children[name].pid, number)

    def record(self, phase: str = "running") -> None:
        """`services.json`, as the supervisor writes it."""
        pids = {name: child.pid for name, child in self.children.items()}
        state.write_services(
            self.path,
            [
                state.ServiceRecord(name, phase, pid, 0, state.started_s(pid))
                for name, pid in pids.items()
            ],
        )


def release_of(home: Path) -> None:
    """A live release of one model, the echo."""
    store = ReleaseStore(home / "releases")
    store.seal("echo", store.staging("echo"), runtime=RUNTIME, signature=SIGNATURE, created_ms=1)
    store.set_current(store.propose({"echo": 1}, created_ms=2).release_id, at_ms=3)


@pytest.fixture
def answers() -> Iterator[tuple[int, Answers]]:
    given = Answers()

    class Standin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = given.reply(self.path)
            self.send_response(503 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Standin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, given
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, answers: tuple[int, Answers]) -> Iterator[Home]:
    """A healthy stack: everything below makes one part of it sick."""
    port, given = answers
    with ExitStack() as cleanup:

        def run(service: Service) -> Child:
            child = start(service)
            cleanup.callback(child.kill)
            return child

        broker, store = Tansu(tmp_path / "logs"), Valkey(tmp_path / "logs")
        children = {"broker": run(broker), "store": run(store)}
        settings = Settings(
            home=tmp_path,
            broker={"kind": "embedded", "bootstrap_servers": broker.bootstrap_servers},
            store={"address": store.address},
            triton={"http_address": f"127.0.0.1:{port}"},
            gateway={"port": port},
            telemetry={"metrics_ports": {"features": port}},
            security={"impression_key": "ab" * 32},
        )
        cleanup.enter_context(state.lock_home(tmp_path))
        state.write_settings(settings)
        wiring.bus(settings, ensure_topics=True)
        release_of(tmp_path)
        features = Command(["sleep", "600"], tmp_path / "logs" / "features.log")
        children["features"] = Child("features", features)
        cleanup.callback(children["features"].kill)
        found = Home(tmp_path, settings, children, given)
        found.record()
        yield found


def test_a_healthy_stack_has_no_sick_part(home: Home) -> None:
    found = home.found()
    assert [f"{name}: {f.text}" for name, f in found.items() if not f.ok] == []
    assert {"broker", "store", "triton", "gateway", "features", "release"} <= set(found)
    assert {"disk of the log", "dead letters", "clocks"} <= set(found)


@pytest.mark.parametrize("name", ["broker", "store"])
def test_a_killed_server_is_named(home: Home, name: str) -> None:
    home.children[name].kill()
    found = home.sick()[name]
    assert "nothing listens at" in found.text or "has ended" in found.text
    assert found.remedy


@pytest.mark.parametrize("name", ["broker", "store"])
def test_a_frozen_server_is_told_from_a_killed_one(home: Home, name: str) -> None:
    home.signal(name, signal.SIGSTOP)
    try:
        assert wait_until(lambda: _status(home.children[name].pid) == "stopped", 10)
        texts = [f.text for f in stack.examine(home.path) if not f.ok and f.name == name]
        assert any("does not answer" in text for text in texts), texts
        assert any("SIGSTOP" in text for text in texts), texts
    finally:
        home.signal(name, signal.SIGCONT)
    assert wait_until(lambda: name not in home.sick(), 60)


def _status(pid: int) -> str:
    return str(psutil.Process(pid).status())


def test_triton_that_is_not_ready_and_a_dead_model_process_are_named(home: Home) -> None:
    home.answers.down = {"/v2/health/ready"}
    home.answers.parts["models"] = {
        "status": "down",
        "reason": "ranker: Stub process 'ranker_0' is not healthy.",
    }
    sick = home.sick()
    assert "does not answer" in sick["triton"].text
    named = sick["models (as the gateway sees it)"]
    assert "Stub process 'ranker_0'" in named.text
    assert "logs/triton.log" in named.remedy
    home.answers.down = {"/healthz"}
    assert "does not answer" in home.sick()["gateway"].text


def test_a_stopped_and_a_crashing_process_are_named(home: Home) -> None:
    home.signal("features", signal.SIGSTOP)
    assert wait_until(lambda: _status(home.children["features"].pid) == "stopped", 10)
    found = home.sick()["features"]
    assert "SIGSTOP" in found.text
    assert f"kill -CONT {home.children['features'].pid}" in found.remedy
    home.children["features"].kill()
    line = '{"timestamp":"t","level":"ERROR","logger":"x","message":"the store is full"}\n'
    home.children["features"].command.log_path.write_text(line)
    found = home.sick()["features"]
    assert "has ended" in found.text
    assert "t ERROR x: the store is full" in found.text
    home.record(phase="waiting")
    assert "waits for its next start" in home.sick()["features"].text


def test_a_killed_supervisor_is_named(tmp_path: Path) -> None:
    found = list(processes.examine(tmp_path, Settings(home=tmp_path)))
    assert [f.name for f in found] == ["supervisor"]
    assert "tidemill down" in found[0].remedy


def test_a_clock_that_is_ahead_is_named(home: Home) -> None:
    home.answers.clock_ahead_s = 120.0
    found = home.sick()["clock of features"]
    assert "ahead" in found.text
    assert "NTP" in found.remedy
    home.answers.clock_ahead_s = -3600.0
    assert "behind" in home.sick()["clock of features"].text


def test_a_disk_that_is_nearly_full_is_named() -> None:
    full = data.disk(2 << 30, 100 << 30)
    assert not full.ok
    assert "log.retention_days" in full.remedy
    assert not data.disk(1 << 29, 2 << 30).ok
    assert data.disk(8 << 30, 100 << 30).ok


def test_a_missing_release_or_bundle_is_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert "tidemill models train" in data.release(settings).remedy
    release_of(tmp_path)
    assert data.release(settings).ok
    shutil.rmtree(tmp_path / "releases" / "bundles")
    found = data.release(settings)
    assert "echo 1" in found.text
    assert "tidemill models rollback" in found.remedy


def _refuse(bus: Bus, cause: str, count: int) -> None:
    for offset in range(count):
        record = Record(BEHAVIOUR, 0, offset, None, b"{}", (), 0)
        letter = dead_letter_message(record, cause, "", bus.topic_id(BEHAVIOUR), 1)
        bus.producer().send([letter])


def test_many_dead_letters_are_named_by_cause() -> None:
    bus, now_s = MemoryBus(), time.time()
    bus.ensure_topics(topic_specs(2))
    _refuse(bus, "erased", 50)
    _refuse(bus, "future", 3)
    assert data.dead_letters(bus, now_s).ok
    _refuse(bus, "unknown_value", 30)
    bus.producer().send([Outgoing("behaviour.dead", b"x", partition=0)])
    found = data.dead_letters(bus, now_s)
    assert not found.ok
    assert "unknown_value (30), future (3)" in found.text
    assert "tidemill replay --dead-letters" in found.remedy
    assert data.dead_letters(bus, now_s + 3_600).ok, "those of an hour ago are no news"


def test_a_real_batcher_that_is_stopped_is_named_and_the_exit_code_is_1(home: Home) -> None:
    port = free_port()
    home.settings.telemetry.metrics_ports = {"batcher": port}
    state.write_settings(home.settings)
    batcher = start(OwnProcess("batcher", home.path))
    try:
        home.children["batcher"] = batcher
        home.record()
        assert home.sick() == {}
        assert home.found()["clocks"].text.startswith("1 processes")
        batcher_log = (home.path / "logs" / "batcher.log").read_text().splitlines()
        ready = [json.loads(line) for line in batcher_log if "is ready" in line]
        assert ready[0]["process"] == "batcher"
        home.signal("batcher", signal.SIGSTOP)
        assert wait_until(lambda: _status(batcher.pid) == "stopped", 10)
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli.main", "doctor"],
            cwd=ROOT,
            env={**os.environ, "TIDEMILL_HOME": str(home.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        row = next(line for line in done.stdout.splitlines() if line.startswith("✗  batcher"))
        assert "SIGSTOP" in row
        assert f"remedy: kill -CONT {batcher.pid}" in done.stdout
    finally:
        batcher.kill()
