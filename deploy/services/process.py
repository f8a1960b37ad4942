"""One child process: how it is started, awaited and stopped.

Knows processes, ports, log files and timeouts. Does not know what runs inside. Each child
leads a session of its own: Ctrl-C in a terminal does not reach it, and its own children
(Triton's stubs) end with it. The kernel kills the child when the thread that started it
ends: start children from a thread that lives as long as they should.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

LOOPBACK = "127.0.0.1"
LOG_TAIL_BYTES = 65_536
# Below Linux' ephemeral range, so that no outgoing connection takes a chosen port.
PORT_RANGE = (20_000, 32_000)
_PR_SET_PDEATHSIG = 1
_CLIENT_LIBRARY = re.compile(r"%\d\|\d+\.\d+\|")  # librdkafka's lines: %4|time|FAIL|client| ...
_TRACEBACK = "Traceback (most recent call last):"
# Loaded before any fork: dlopen in a forked child of a threaded process may deadlock.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_random = random.SystemRandom()
_chosen: set[int] = set()


class ServiceUnavailable(RuntimeError):
    """The service cannot run on this machine; the message says why and how to get it."""


class ServiceFailed(RuntimeError):
    """The service did not start or crashed; the message ends with its log."""


@dataclass(frozen=True)
class Command:
    """What to execute. `env` overrides this process's environment."""

    argv: Sequence[str]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


class Service(Protocol):
    """A process that a supervisor can keep running."""

    @property
    def name(self) -> str: ...

    def command(self) -> Command:
        """Prepares the files that the process needs and returns how to start it."""

    def ready(self) -> bool:
        """Whether it answers now; takes well under a second."""


def free_port() -> int:
    """A loopback TCP port that is free and was not returned before."""
    for _ in range(200):
        port = _random.randrange(*PORT_RANGE)
        if port not in _chosen and _can_bind(port):
            _chosen.add(port)
            return port
    raise ServiceUnavailable(f"no free port between {PORT_RANGE[0]} and {PORT_RANGE[1]}")


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def listening(port: int, timeout_s: float = 0.3) -> bool:
    """Whether the loopback port accepts TCP connections."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s):
            return True
    except OSError:
        return False


class Child:
    """One run of a command. A second run is a second Child."""

    def __init__(self, name: str, command: Command) -> None:
        self.name = name
        self.command = command
        command.log_path.parent.mkdir(parents=True, exist_ok=True)
        with command.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                list(command.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=command.cwd,
                env={**os.environ, **utf8_locale(os.environ), **command.env},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def alive(self) -> bool:
        return self.exit_code() is None

    def cause(self, lines: int = 20) -> str:
        """Why this run ended: see `cause_first`."""
        return cause_first(self.tail(lines * 20), lines)

    def tail(self, lines: int = 20) -> str:
        """The last lines of this run's log."""
        return log_tail(self.command.log_path, lines, self._log_start)

    def stop(self, grace_s: float = 10.0) -> int:
        """SIGTERM, then after `grace_s` SIGKILL, for the whole session. Returns the exit code.

        Also ends processes in the session of a child that is already gone.
        """
        if self.alive():
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._signal(signal.SIGKILL)
        return self._process.wait(10)

    def terminate(self) -> None:
        """SIGTERM for the whole session, without waiting; what is stopped goes on and sees it."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> int:
        """SIGKILL for the whole session."""
        self._signal(signal.SIGKILL)
        return self._process.wait(10)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def utf8_locale(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that make a child's locale UTF-8, if it is not: Triton's stub ends without it, and
    a JVM cannot open files with other than ASCII names."""
    name = next((v for k in ("LC_ALL", "LC_CTYPE", "LANG") if (v := environment.get(k))), "")
    if re.search(r"utf-?8", name, re.IGNORECASE):
        return {}
    return {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def log_tail(path: Path, lines: int = 20, start: int = 0) -> str:
    """The last lines of a log file, from byte `start` on, as text; "" when there is none."""
    from streams.json_logs import as_text  # only a failure reads logs

    try:
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(start, size - LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    shown = "\n".join(map(as_text, text.splitlines()[-lines:]))
    return "\n".join(shown.splitlines()[-lines:])


def cause_first(log: str, lines: int) -> str:
    """The end of a log that says why its process ended, in at most `lines` lines.

    The last exception's message stands first. Messages of the Kafka client library, which go on
    after the cause, are shown only if there is nothing else.
    """
    every = log.splitlines()
    own = [line for line in every if not _CLIENT_LIBRARY.match(line)] or every
    starts = [at for at, line in enumerate(own) if _TRACEBACK in line]
    if not starts:
        return "\n".join(own[-lines:])
    after = own[starts[-1] + 1 :]
    ended = next((at for at, line in enumerate(after) if line[:1].strip()), len(after) - 1)
    frames = own[starts[-1] : starts[-1] + ended + 1]
    shown = after[ended : ended + 1] + frames[-max(lines - 1, 1) :]
    return "\n".join(shown[:lines])


def start(service: Service, timeout_s: float = 60.0) -> Child:
    """Starts a service and returns when it answers.

    Raises:
        ServiceUnavailable: it cannot run on this machine.
        ServiceFailed: it ended or did not answer in time; no process of it is left.
    """
    child = Child(service.name, service.command())
    try:
        await_ready(service, child, timeout_s)
    except BaseException:
        child.kill()
        raise
    return child


def await_ready(service: Service, child: Child, timeout_s: float) -> None:
    """Returns when the service answers; raises ServiceFailed if it ended or time is out."""

    def is_up() -> bool:
        if not child.alive():
            raise ServiceFailed(
                f"{service.name} ended with code {child.exit_code()} while starting; "
                f"last lines of {child.command.log_path}:\n{child.cause()}"
            )
        return service.ready()

    if not wait_until(is_up, timeout_s):
        raise ServiceFailed(
            f"{service.name} did not answer within {timeout_s:g} s; "
            f"last lines of {child.command.log_path}:\n{child.cause()}"
        )


def wait_until(condition: Callable[[], bool], timeout_s: float, pause_s: float = 0.05) -> bool:
    """Polls with growing pauses (to half a second) until true or out of time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.3, 0.5)
    return True


@contextlib.contextmanager
def running(service: Service, timeout_s: float = 60.0) -> Iterator[Child]:
    """Runs a service for the length of a with-block."""
    child = start(service, timeout_s)
    try:
        yield child
    finally:
        child.stop()
