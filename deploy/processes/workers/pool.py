"""The process that starts a gateway's workers, and starts one again that ended or stopped.

Knows forks, signals and exit codes. Does not know what a worker does. It runs one thread and opens
no connection while it forks: a copy of a lock that another thread holds would never be released.
What it has read and imported, its workers share until one of them writes to it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from deploy.processes.workers.board import Board

_LOG = logging.getLogger("tidemill")
_WATCH_S = 0.2
SILENT_S = 15.0  # without a sign of life: a worker that is stopped; a busy one shows life
STARTS_WITHIN_S = 90.0
_GRACE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0  # before a worker is started that ended while starting
_PR_SET_PDEATHSIG = 1


@dataclass
class _Worker:
    """One number's restarts that did not help, and when the next is due (monotonic)."""

    pause_s: float = _FIRST_PAUSE_S
    due_s: float = field(default_factory=time.monotonic)


class WorkerPool:
    """Keeps `count` workers running until `stop`.

    work: what a worker does, by its number; it returns the exit code.
    prepare: brings the shared state up to date, on the calling thread, before a fork. A failure
        is logged, and the worker starts from older state.
    ended: called with the number and process id of each worker that ended.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int], int],
        stop: threading.Event,
        *,
        prepare: Callable[[], object] = lambda: None,
        ended: Callable[[int, int], object] = lambda _number, _pid: None,
        board: Board | None = None,
        silent_s: float = SILENT_S,
    ) -> None:
        self.board = board or Board(count)
        self._work, self._stop, self._prepare, self._ended = work, stop, prepare, ended
        self._silent_s = silent_s
        self._workers = {number: _Worker() for number in self.board.numbers}

    def run(self, on_ready: Callable[[], object] = lambda: None) -> int:
        """Returns the exit code: 0 after `stop`. `on_ready`: once each worker has been ready."""
        gc.collect()
        gc.freeze()  # a collection would write to every object, and nothing would be shared
        waiting = set(self.board.numbers)
        try:
            while not self._stop.is_set():
                self._start_due()
                self._stop.wait(_WATCH_S)
                self._reap()
                self._end_silent()
                ready = {number for number in waiting if self.board.ready(number)}
                if ready and not (waiting := waiting - ready):
                    on_ready()
        finally:
            self._end_all()
        return 0

    def _start_due(self) -> None:
        due = [n for n in self.board.numbers if not self.board.pid(n) and self._is_due(n)]
        if due:
            try:
                self._prepare()
            except Exception as error:
                _LOG.warning("workers start from older state: %s", error)
        for number in due:
            self._start(number)

    def _is_due(self, number: int) -> bool:
        return time.monotonic() >= self._workers[number].due_s

    def _start(self, number: int) -> None:
        _warn_of_threads()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_worker(self._work, number, parent)
        self.board.begin(number, pid)

    def _reap(self) -> None:
        for number in self.board.numbers:
            pid = self.board.pid(number)
            if not pid:
                continue
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._after_end(number, pid, os.waitstatus_to_exitcode(status))

    def _after_end(self, number: int, pid: int, code: int) -> None:
        worker, was_ready = self._workers[number], self.board.ready(number)
        self.board.end(number)
        worker.pause_s = _FIRST_PAUSE_S if was_ready else worker.pause_s * 2
        worker.pause_s = min(worker.pause_s, _LONGEST_PAUSE_S)
        worker.due_s = time.monotonic() + (0.0 if was_ready else worker.pause_s)
        if not self._stop.is_set():
            _LOG.error(
                "worker %d (process %d) ended with %d and is started again", number, pid, code
            )
        self._ended(number, pid)

    def _end_silent(self) -> None:
        for number in self.board.numbers:
            limit_s = self._silent_s if self.board.ready(number) else STARTS_WITHIN_S
            if self.board.pid(number) and self.board.silent_s(number) > limit_s:
                _LOG.error("worker %d has shown no life for %g s and is killed", number, limit_s)
                _send(self.board.pid(number), signal.SIGKILL)

    def _end_all(self) -> None:
        for number in self.board.numbers:
            _send(self.board.pid(number), signal.SIGTERM)
        until = time.monotonic() + _GRACE_S
        while any(map(self.board.pid, self.board.numbers)):
            self._reap()
            if time.monotonic() > until:
                for number in self.board.numbers:
                    _send(self.board.pid(number), signal.SIGKILL)
            time.sleep(0.02)


def _send(pid: int, number: signal.Signals) -> None:
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _run_worker(work: Callable[[int], int], number: int, parent: int) -> None:
    """The forked process. It ends with its parent, and never returns into the parent's code."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:  # else the parent has ended before it was asked for
            code = work(number)
    except BaseException:
        _LOG.exception("worker %d failed", number)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _warn_of_threads() -> None:
    """A library's own threads take care of themselves; Python's would hold locks in the copy."""
    if (others := threading.active_count() - 1) > 0:
        names = sorted(each.name for each in threading.enumerate())
        _LOG.warning("%d threads run while a worker is forked: %s", others, ", ".join(names))
