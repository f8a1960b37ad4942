"""The whole real stack: it answers, restarts what crashed and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deploy import state
from deploy.processes import PROCESSES
from deploy.services import triton
from deploy.services.process import listening, wait_until
from deploy.settings import Settings
from deploy.stack import Stack

TIDEMILL = [sys.executable, "-m", "deploy.cli.main"]
ROOT = Path(__file__).resolve().parents[2]
UP_WITHIN_S = 120.0


@dataclass
class Running:
    """`tidemill up` in a process of its own, and all that it started."""

    process: subprocess.Popen[bytes]
    home: Path
    output: Path

    @property
    def settings(self) -> Settings:
        return state.read_settings(self.home)

    def ask(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TIDEMILL, command],
            cwd=ROOT,
            env=_environment(self.home),
            capture_output=True,
            text=True,
            check=False,
        )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ports(self) -> list[int]:
        """Every port that the family listens on, from the kernel, not from the settings."""
        found = []
        for member in self.family():
            for connection in member.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", (
                        member.cmdline(),
                        connection,
                    )
                    found.append(connection.laddr.port)
        return found

    def record(self, name: str) -> state.ServiceRecord | None:
        return next((r for r in state.read_services(self.home) if r.name == name), None)


def _environment(home: Path, **extra: str) -> dict[str, str]:
    return {**os.environ, "TIDEMILL_HOME": str(home), "COLUMNS": "200", **extra}


def _running_page(output: Path) -> bool:
    return "The page:" in output.read_text()


@pytest.fixture
def up(tmp_path: Path, triton_overlay: Path) -> Iterator[Callable[..., Running]]:
    """Starts stacks; ends what a failed test leaves of them."""
    assert triton_overlay.exists()
    started: list[Running] = []

    def start(**extra: str) -> Running:
        home, output = tmp_path / "my project (größe)", tmp_path / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*TIDEMILL, "up"],
                cwd=ROOT,
                env=_environment(home, **extra),
                stdout=file,
                stderr=file,
            )
        running = Running(process, home, output)
        started.append(running)
        assert wait_until(
            lambda: _running_page(output) or process.poll() is not None, UP_WITHIN_S
        ), output.read_text()
        assert process.poll() is None, output.read_text()
        return running

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()
        state.reap(running.home)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _sick_parts(doctor: subprocess.CompletedProcess[str]) -> set[str]:
    """The first word of each row that the doctor marks as sick."""
    assert doctor.returncode == 1, doctor.stderr
    rows = [line for line in doctor.stdout.splitlines() if line.startswith("✗")]
    return {row.split()[1] for row in rows}


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_no_port(up: Callable[..., Running]) -> None:
    running = up()
    with urllib.request.urlopen(f"http://127.0.0.1:{running.settings.gateway.port}/healthz") as r:
        assert r.status == 200
    assert running.ask("status").returncode == 0
    second = running.ask("up")
    assert second.returncode == 1
    assert f"process {running.process.pid}" in second.stderr
    family, ports = running.family(), running.ports()
    models_at = running.settings.triton.grpc_address
    assert triton.shared_memory(models_at) != []
    assert len(family) >= len(PROCESSES) + 3  # broker, store, Triton; besides its stubs
    assert len(ports) >= 5
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0, running.output.read_text()
    assert _alive(family) == []
    assert [port for port in ports if listening(port)] == []
    assert not (running.home / "stack.json").exists()
    assert triton.shared_memory(models_at) == []
    assert "no process is left running" in running.output.read_text()


@pytest.mark.slow
def test_a_killed_process_is_restarted_and_a_killed_stack_leaves_nothing(
    up: Callable[..., Running],
) -> None:
    # The doctor is to see a process stopped, and to be given the time.
    running = up(TIDEMILL_SUPERVISION__STOPPED_S="0", TIDEMILL_SUPERVISION__UNANSWERED_S="0")
    killed = running.record("features")
    assert killed is not None
    assert killed.pid is not None
    assert _sick_parts(running.ask("doctor")) == {"release"}, "no model is trained yet"
    os.kill(killed.pid, signal.SIGSTOP)
    assert _sick_parts(running.ask("doctor")) == {"release", "features"}
    os.kill(killed.pid, signal.SIGKILL)
    assert wait_until(
        lambda: (
            (r := running.record("features")) is not None
            and (r.phase, r.restarts) == ("running", 1)
        ),
        60,
    ), running.output.read_text()
    assert "features ended with code -9" in running.output.read_text()
    family, ports = running.family(), running.ports()
    models_at = running.settings.triton.grpc_address
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not _alive(family), 10)
    down = running.ask("down")
    assert down.returncode == 0
    assert wait_until(lambda: not _alive(family), 10), [p.cmdline() for p in _alive(family)]
    assert [port for port in ports if listening(port)] == []
    assert triton.shared_memory(models_at) == []


@pytest.mark.slow
def test_down_from_another_terminal_stops_it(up: Callable[..., Running]) -> None:
    running = up(TIDEMILL_TRITON="in_process")
    family = running.family()
    down = running.ask("down")
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    assert running.process.wait(10) == 0
    assert _alive(family) == []
    assert running.ask("status").returncode == 1
    assert "no stack runs in" in running.ask("down").stdout


def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(
            home=tmp_path,
            store={"kind": "external", "address": "127.0.0.1:1"},
            broker={
                "kind": "external",
                "bootstrap_servers": f"127.0.0.1:{taken.getsockname()[1]}",
            },
            triton={"kind": "in_process"},
        )
        stack = Stack(settings)
        with pytest.raises(Exception, match=r"broker|topic"):
            stack.start()
    assert not state.home_is_locked(tmp_path)
    assert psutil.Process().children() == [] or stack.status() == []
