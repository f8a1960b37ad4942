"""Signs of life of processes that run: whether a signal stopped one, and whether it answers.

Knows /proc, sockets and the first bytes of Kafka's protocol. Does not know what is done about a
process that is frozen (`deploy.supervisor`).
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from deploy.services.process import LOOPBACK

MIN_UNANSWERED = 3  # probes in a row: a supervisor that was itself stopped draws no conclusion
MIN_LOOKS = 2  # likewise, at a process that is stopped
PROBE_S = 1.0
_API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)  # size, key, version, id, no client name


@dataclass(frozen=True)
class FreezeLimits:
    """Seconds after which a part that runs counts as frozen; 0: never.

    unanswered_s: without an answer to a probe. stopped_s: stopped by a signal (SIGSTOP), which
    is certain, so that less time will do.
    """

    unanswered_s: float = 10.0
    stopped_s: float = 1.0


@dataclass
class Silence:
    """Unanswered probes in a row, and since when. Thread safe: one writer, plain reads."""

    count: int = 0
    since: float = 0.0
    newest: float = 0.0

    def note(self, answered: bool) -> None:
        if answered:
            self.count = 0
            return
        self.newest = time.monotonic()
        if not self.count:
            self.since = self.newest
        self.count += 1

    def lasts_s(self) -> float:
        """From the first to the newest unanswered probe; 0 before enough of them."""
        return self.newest - self.since if self.count >= MIN_UNANSWERED else 0.0


@dataclass
class StateWatch:
    """Processes that were seen in a state of /proc: pid -> since when, and how often."""

    state: bytes
    seen: dict[int, tuple[float, int]] = field(default_factory=dict)

    def longer_than(self, pids: Sequence[int], limit_s: float) -> list[int]:
        """Those of `pids` that are in the state and have been for so long."""
        now = time.monotonic()
        found = {pid: self.seen.get(pid, (now, 0)) for pid in pids if state_of(pid) == self.state}
        self.seen = {pid: (since, looks + 1) for pid, (since, looks) in found.items()}
        return [
            pid
            for pid, (since, looks) in self.seen.items()
            if looks >= MIN_LOOKS and now - since >= limit_s
        ]


@dataclass
class ChildWatch:
    """The children of a service: which were killed, by their command lines."""

    commands: dict[int, list[str]] = field(default_factory=dict)
    ended: StateWatch = field(default_factory=lambda: StateWatch(b"Z"))

    def killed(self, children: Sequence[int]) -> list[list[str]]:
        """Those that ended and that the service does not wait for, each told once. One that the
        service itself ended is gone by the second look."""
        known = {pid: self.commands.get(pid) or command_line(pid) for pid in children}
        ended = self.ended.longer_than(children, 0.0)
        self.commands = {pid: words for pid, words in known.items() if pid not in ended}
        return [known[pid] for pid in ended if known[pid]]


def state_of(pid: int) -> bytes:
    """T: stopped by a signal (a debugger's stop is another state). Z: ended, and its parent has
    not noticed. b"" without such a process."""
    text = _read(f"/proc/{pid}/stat")  # b"": it is gone, or this is not Linux
    return text[text.rfind(b")") + 2 :][:1]


def command_line(pid: int) -> list[str]:
    """[] for a process that has ended."""
    words = _read(f"/proc/{pid}/cmdline").split(b"\0")
    return [word.decode(errors="replace") for word in words if word]


def children_of(pid: int) -> Iterator[int]:
    """Those that its threads have started, not their children."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        yield from map(int, _read(f"/proc/{pid}/task/{thread}/children").split())


def _read(path: str) -> bytes:
    """A small file of /proc, without the cost of a file object; b"" where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # the process ended meanwhile
        return b""
    finally:
        os.close(descriptor)


def probe(
    answers: Callable[[], bool],
    running: Callable[[], bool],
    silence: Silence,
    stop: threading.Event,
    every_s: float,
) -> None:
    """Asks every `every_s` until `stop` is set; while the part does not run, nothing is asked."""
    while not stop.wait(every_s):
        if not running():
            silence.count = 0
            continue
        try:
            answered = answers()
        except Exception:  # an error counts as no answer
            answered = False
        silence.note(answered)


def answers_kafka(port: int, timeout_s: float = PROBE_S) -> bool:
    """Whether a broker on loopback answers ApiVersions. A stopped one still accepts connections."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s) as connection:
            connection.sendall(_API_VERSIONS)
            return len(connection.recv(8)) == 8
    except OSError:
        return False


def answers_bytes(port: int, path: str, timeout_s: float = PROBE_S) -> bool:
    """Whether an HTTP server on loopback answers a GET, with any status."""
    request = f"GET {path} HTTP/1.0\r\nHost: {LOOPBACK}\r\n\r\n".encode()
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout_s) as connection:
            connection.sendall(request)
            return connection.recv(12).startswith(b"HTTP/")
    except OSError:
        return False
