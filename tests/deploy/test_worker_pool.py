"""Laws of a pool of forked workers, each of which only shows life: one that ends or stops is started
again, one that cannot start is tried less and less often, and none outlives the pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.services.process import wait_until

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 30.0
# argv: the folder in which each start leaves a file NUMBER-PID.
POOL = """
import os, pathlib, signal, sys, threading, time
from deploy.processes.workers.pool import WorkerPool

folder, stop = pathlib.Path(sys.argv[1]), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())

def work(number):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    (folder / f"{number}-{os.getpid()}").touch()
    if (folder / "broken").exists():
        return 3
    while True:
        pool.board.beat(number)
        time.sleep(0.02)

def ended(number, pid):
    (folder / f"ended-{number}-{pid}").touch()

def prepare():
    (folder / "prepared").touch()
    raise OSError("the broker is down")  # workers start all the same

pool = WorkerPool(2, work, stop, prepare=prepare, ended=ended, silent_s=8.0)
sys.exit(pool.run(lambda: (folder / "ready").touch()))
"""


class Pool:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-c", POOL, str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)

    def started(self, number: int) -> list[int]:
        return [int(path.name.partition("-")[2]) for path in self.folder.glob(f"{number}-*")]

    def workers(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Pool]]:
    found: list[Pool] = []

    def begin() -> Pool:
        found.append(Pool(tmp_path))
        return found[0]

    yield begin
    found[0].process.kill()
    found[0].process.communicate()


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_ends_or_stops_is_started_again_and_none_outlives_the_pool(
    start: Callable[[], Pool],
) -> None:
    pool = start()
    assert wait_until((pool.folder / "ready").exists, WITHIN_S)
    assert (pool.folder / "prepared").exists()
    (killed,), (stopped,) = pool.started(1), pool.started(2)
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: len(pool.started(1)) >= 2, WITHIN_S)
    assert (pool.folder / f"ended-1-{killed}").exists()
    os.kill(stopped, signal.SIGSTOP)
    assert wait_until(lambda: len(pool.started(2)) >= 2, WITHIN_S)
    workers = pool.workers()
    assert len(workers) == 2
    assert not {killed, stopped} & set(workers)
    pool.process.send_signal(signal.SIGTERM)
    assert pool.process.wait(WITHIN_S) == 0
    assert all(map(_gone, workers))


def test_a_killed_pool_takes_its_workers_with_it(start: Callable[[], Pool]) -> None:
    pool = start()
    assert wait_until((pool.folder / "ready").exists, WITHIN_S)
    workers = pool.workers()
    pool.process.kill()
    assert wait_until(lambda: all(map(_gone, workers)), WITHIN_S)


def test_a_worker_that_cannot_start_is_tried_less_and_less_often(
    start: Callable[[], Pool], tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    pool = start()
    assert wait_until(lambda: len(pool.started(1)) >= 2, WITHIN_S)
    (tmp_path / "broken").unlink()
    assert wait_until((pool.folder / "ready").exists, WITHIN_S)
    pool.process.send_signal(signal.SIGTERM)
    _, log = pool.process.communicate(timeout=WITHIN_S)
    assert b"ended with 3" in log
