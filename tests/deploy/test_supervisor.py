"""The supervisor reports and restarts crashed services, and a stop leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deploy.services.liveness import FreezeLimits, Silence, answers_bytes, answers_kafka
from deploy.services.process import (
    Command,
    ServiceFailed,
    free_port,
    listening,
    running,
    wait_until,
)
from deploy.supervisor import (
    LONGEST_BACKOFF_S,
    LOOK_EVERY_S,
    Report,
    Supervised,
    Supervisor,
    backoff_s,
)

LISTEN = """
import pathlib, signal, socket, sys, time
if "ignore-term" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True: s.accept()
"""


@dataclass(frozen=True)
class Listener:
    """A small server that a test can break."""

    name: str
    folder: Path
    port: int
    code: str = LISTEN
    extra: tuple[str, ...] = ()

    def command(self) -> Command:
        argv = [sys.executable, "-c", self.code, str(self.port), *self.extra]
        return Command(argv, self.folder / f"{self.name}.log", cwd=self.folder)

    def ready(self) -> bool:
        return listening(self.port)


class Reports(list[Report]):
    """Every report, in order."""

    def include(self, service: str, text: str) -> bool:
        return any(r.service == service and text in r.text for r in list(self))


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def supervisor(reports: Reports) -> Iterator[Supervisor]:
    one = Supervisor(reports.append)
    yield one
    one.stop()


def _pid(supervisor: Supervisor, name: str) -> int | None:
    return next(s.pid for s in supervisor.status() if s.name == name)


def _kill(supervisor: Supervisor, name: str) -> None:
    pid = _pid(supervisor, name)
    assert pid is not None
    psutil.Process(pid).kill()


def test_a_crash_is_reported_with_its_last_lines_and_restarted(
    supervisor: Supervisor, reports: Reports, tmp_path: Path
) -> None:
    server = Listener("server", tmp_path, free_port())
    supervisor.start([Supervised(server)])
    _kill(supervisor, "server")
    assert wait_until(lambda: reports.include("server", "answers again"), 15)
    assert server.ready()
    assert reports[0].text.startswith("ended with code -9")
    assert reports[0].log.endswith("listening")
    assert supervisor.status()[0].restarts == 1


def test_after_start_runs_after_a_restart_too(
    supervisor: Supervisor, reports: Reports, tmp_path: Path
) -> None:
    filled: list[str] = []
    server = Listener("server", tmp_path, free_port())
    supervisor.start([Supervised(server, after_start=lambda: filled.append("x"))])
    assert filled == ["x"]
    _kill(supervisor, "server")
    assert wait_until(lambda: reports.include("server", "answers again"), 15)
    assert filled == ["x", "x"]


def test_a_service_that_cannot_start_raises_in_start(
    supervisor: Supervisor, reports: Reports, tmp_path: Path
) -> None:
    broken = Listener("broken", tmp_path, free_port(), code="raise SystemExit('no wheel')")
    whole = Listener("whole", tmp_path, free_port())
    with pytest.raises(ServiceFailed, match=r"(?s)broken ended with code 1.*no wheel"):
        supervisor.start([Supervised(broken), Supervised(whole)])
    assert reports == []  # raised, not also reported


def test_a_service_that_runs_but_does_not_answer_is_restarted(
    reports: Reports, tmp_path: Path
) -> None:
    code = LISTEN.replace(
        "while True: s.accept()",
        "\nif pathlib.Path('hang').exists(): pathlib.Path('hang').unlink(); time.sleep(1)"
        "; s.close(); time.sleep(99)\nwhile True: s.accept()",
    )
    (tmp_path / "hang").touch()
    server = Listener("server", tmp_path, free_port(), code=code)
    supervisor = Supervisor(reports.append, FreezeLimits(unanswered_s=0.2, stopped_s=0.0))
    try:
        supervisor.start([Supervised(server, answers=server.ready, check_every_s=0.1)])
        assert wait_until(lambda: reports.include("server", "did not answer for"), 30)
        assert wait_until(lambda: reports.include("server", "answers again"), 30)
    finally:
        supervisor.stop()


def test_a_stopped_service_is_killed_and_restarted_unless_the_limit_is_0(
    reports: Reports, tmp_path: Path
) -> None:
    server = Listener("server", tmp_path, free_port())
    patient = Supervisor(reports.append, FreezeLimits(stopped_s=0.0))
    supervisor = Supervisor(reports.append, FreezeLimits(stopped_s=0.3))
    try:
        patient.start([Supervised(Listener("left", tmp_path, free_port()))])
        supervisor.start([Supervised(server)])
        left, first = _pid(patient, "left"), _pid(supervisor, "server")
        assert left is not None
        assert first is not None
        os.kill(left, signal.SIGSTOP)
        os.kill(first, signal.SIGSTOP)
        assert wait_until(lambda: reports.include("server", "answers again"), 30)
        assert reports.include("server", "stopped by a signal")
        assert _pid(supervisor, "server") not in (None, first)
        assert _pid(patient, "left") == left
    finally:
        supervisor.stop()
        patient.stop()


def test_a_stopped_child_is_killed_and_its_command_told_and_the_service_stays(
    reports: Reports, tmp_path: Path
) -> None:
    """As Triton's stubs, which threads of it have started and which it does not wait for."""
    fork = "import subprocess, threading; " + (
        "threading.Thread(target=subprocess.Popen, args=(['sleep', '99'],)).start()"
    )
    server = Listener("server", tmp_path, free_port(), code=fork + LISTEN)
    supervisor = Supervisor(reports.append, FreezeLimits(stopped_s=0.1))
    killed: list[list[str]] = []
    try:
        supervisor.start([Supervised(server, child_killed=lambda argv: killed.append(list(argv)))])
        pid = _pid(supervisor, "server")
        assert wait_until(lambda: bool(psutil.Process(pid).children()), 30)
        child = psutil.Process(pid).children()[0]
        assert wait_until(lambda: child.name() == "sleep", 30)  # it has been forked, and then runs
        time.sleep(2 * LOOK_EVERY_S)  # the supervisor has seen it
        child.send_signal(signal.SIGSTOP)
        assert wait_until(lambda: bool(killed), 30)
        assert reports.include("server", f"its process {child.pid} was stopped")
        assert killed == [["sleep", "99"]]
        assert supervisor.status()[0].restarts == 0
    finally:
        supervisor.stop()


def test_silence_needs_several_probes_and_its_time() -> None:
    silence = Silence()
    silence.note(answered=False)
    silence.since -= 3_600.0  # as after an hour in which the supervisor itself was stopped
    silence.note(answered=False)
    assert silence.lasts_s() == 0.0
    silence.note(answered=False)
    assert silence.lasts_s() >= 3_600.0
    silence.note(answered=True)
    assert silence.lasts_s() == 0.0


def test_a_broker_and_a_page_answer_their_probes_and_a_stopped_process_does_not(
    tmp_path: Path,
) -> None:
    mute = Listener("mute", tmp_path, free_port())
    with running(mute):
        assert listening(mute.port)
        assert not answers_kafka(mute.port, 0.2)
        assert not answers_bytes(mute.port, "/", 0.2)
    page = free_port()
    serve = [sys.executable, "-m", "http.server", str(page), "--bind", "127.0.0.1"]
    with subprocess.Popen(serve, cwd=tmp_path, stderr=subprocess.DEVNULL) as server:
        try:
            assert wait_until(lambda: answers_bytes(page, "/absent"), 30)
        finally:
            server.kill()


def test_a_slow_start_does_not_delay_restarts_of_others(
    supervisor: Supervisor, reports: Reports, tmp_path: Path
) -> None:
    slow = Listener("slow", tmp_path, free_port())
    quick = Listener("quick", tmp_path, free_port())
    supervisor.start([Supervised(slow), Supervised(quick)])
    object.__setattr__(slow, "code", "import time; time.sleep(99)")
    _kill(supervisor, "slow")
    assert wait_until(lambda: _pid(supervisor, "slow") is not None, 10)
    _kill(supervisor, "quick")
    assert wait_until(lambda: reports.include("quick", "answers again"), 10)
    assert not reports.include("slow", "answers again")


def test_a_stop_leaves_no_process_and_no_port(reports: Reports, tmp_path: Path) -> None:
    supervisor = Supervisor(reports.append)
    servers = [
        Listener("first", tmp_path, free_port()),
        Listener("second", tmp_path, free_port(), extra=("ignore-term",)),
    ]
    supervisor.start([Supervised(server, grace_s=0.3) for server in servers])
    pids = [s.pid for s in supervisor.status()]
    supervisor.stop()
    assert not any(server.ready() for server in servers)
    assert not any(pid is not None and psutil.pid_exists(pid) for pid in pids)
    assert reports == []  # a requested stop is not a crash


def test_pauses_double_up_to_the_longest() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert backoff_s(50) == LONGEST_BACKOFF_S
