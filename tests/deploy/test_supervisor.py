"""Laws of the supervisor: a crash is told and mended, and a stop leaves nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deploy.services.process import Command, PartFailed, free_port, listening, wait_until
from deploy.supervisor import (
    DEAF_CHECKS,
    LONGEST_BACKOFF_S,
    Report,
    Service,
    Supervisor,
    backoff_s,
)

LISTEN = """
import pathlib, signal, socket, sys, time
if "deaf-to-term" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("grinding", flush=True)
while True: s.accept()
"""


@dataclass(frozen=True)
class Listener:
    """A small server of our own, so that a test can break it as it likes."""

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


class Told(list[Report]):
    """Every report, in order."""

    def says(self, service: str, text: str) -> bool:
        return any(r.service == service and text in r.text for r in list(self))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def supervisor(told: Told) -> Iterator[Supervisor]:
    one = Supervisor(told.append)
    yield one
    one.stop()


def _pid(supervisor: Supervisor, name: str) -> int | None:
    return next(s.pid for s in supervisor.status() if s.name == name)


def _kill(supervisor: Supervisor, name: str) -> None:
    pid = _pid(supervisor, name)
    assert pid is not None
    psutil.Process(pid).kill()


def test_a_crash_is_told_with_its_last_lines_and_mended(
    supervisor: Supervisor, told: Told, tmp_path: Path
) -> None:
    part = Listener("mill", tmp_path, free_port())
    supervisor.start([Service(part)])
    _kill(supervisor, "mill")
    assert wait_until(lambda: told.says("mill", "answers again"), 15)
    assert part.ready()
    assert told[0].text.startswith("ended with code -9")
    assert told[0].log.endswith("grinding")
    assert supervisor.status()[0].restarts == 1


def test_what_a_restart_emptied_is_filled_again(
    supervisor: Supervisor, told: Told, tmp_path: Path
) -> None:
    filled: list[str] = []
    part = Listener("mill", tmp_path, free_port())
    supervisor.start([Service(part, after_start=lambda: filled.append("x"))])
    assert filled == ["x"]
    _kill(supervisor, "mill")
    assert wait_until(lambda: told.says("mill", "answers again"), 15)
    assert filled == ["x", "x"]


def test_a_part_that_cannot_start_is_the_starters_to_know(
    supervisor: Supervisor, told: Told, tmp_path: Path
) -> None:
    broken = Listener("broken", tmp_path, free_port(), code="raise SystemExit('no wheel')")
    whole = Listener("whole", tmp_path, free_port())
    with pytest.raises(PartFailed, match=r"(?s)broken ended with code 1.*no wheel"):
        supervisor.start([Service(broken), Service(whole)])
    assert told == []  # raised, not also told


def test_a_part_that_lives_but_does_not_answer_is_restarted(
    supervisor: Supervisor, told: Told, tmp_path: Path
) -> None:
    code = LISTEN.replace(
        "while True: s.accept()",
        "\nif pathlib.Path('deaf').exists(): pathlib.Path('deaf').unlink(); time.sleep(1)"
        "; s.close(); time.sleep(99)\nwhile True: s.accept()",
    )
    (tmp_path / "deaf").touch()
    part = Listener("mill", tmp_path, free_port(), code=code)
    supervisor.start([Service(part, check_every_s=0.1)])
    assert wait_until(lambda: told.says("mill", f"did not answer {DEAF_CHECKS} times"), 15)
    assert wait_until(lambda: told.says("mill", "answers again"), 15)


def test_one_slow_start_does_not_hold_up_the_mending_of_others(
    supervisor: Supervisor, told: Told, tmp_path: Path
) -> None:
    slow = Listener("slow", tmp_path, free_port())
    quick = Listener("quick", tmp_path, free_port())
    supervisor.start([Service(slow), Service(quick)])
    object.__setattr__(slow, "code", "import time; time.sleep(99)")
    _kill(supervisor, "slow")
    assert wait_until(lambda: _pid(supervisor, "slow") is not None, 10)
    _kill(supervisor, "quick")
    assert wait_until(lambda: told.says("quick", "answers again"), 10)
    assert not told.says("slow", "answers again")


def test_a_stop_leaves_no_process_and_no_port(told: Told, tmp_path: Path) -> None:
    supervisor = Supervisor(told.append)
    parts = [
        Listener("first", tmp_path, free_port()),
        Listener("deaf", tmp_path, free_port(), extra=("deaf-to-term",)),
    ]
    supervisor.start([Service(part, grace_s=0.3) for part in parts])
    pids = [s.pid for s in supervisor.status()]
    supervisor.stop()
    assert not any(part.ready() for part in parts)
    assert not any(pid is not None and psutil.pid_exists(pid) for pid in pids)
    assert told == []  # an ordered end is not a crash


def test_pauses_double_up_to_the_longest() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert backoff_s(50) == LONGEST_BACKOFF_S
