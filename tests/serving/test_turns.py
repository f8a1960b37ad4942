"""Laws of turns: so many compute at once, one that waits gives its turn away, and one that has begun
goes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from serving.clients.turns import Turns


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


class Run:
    """Threads with what each does in its turn; `order` lists who had a turn when."""

    def __init__(self, at_once: int) -> None:
        self.turns, self.order = Turns(at_once), list[str]()
        self._threads: list[threading.Thread] = []

    def start(self, name: str, before: threading.Event, wait_for: threading.Event | None) -> None:
        def work() -> None:
            with self.turns.computing():
                self.order.append(name)
                before.wait(30.0)
                if wait_for is not None:
                    with self.turns.waiting():
                        wait_for.wait(30.0)
                    self.order.append(f"{name} again")

        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30.0)
            assert not thread.is_alive()


def test_no_more_compute_at_once_and_none_is_forgotten() -> None:
    run, gate = Run(2), threading.Event()
    for name in "abcd":
        run.start(name, gate, None)
    _until(lambda: len(run.order) == 2 and len(run.turns._new) == 2)
    gate.set()
    run.join()
    assert sorted(run.order) == ["a", "b", "c", "d"]
    assert run.turns._free == 2


def test_one_that_waits_gives_its_turn_away_and_goes_before_new_ones() -> None:
    run, done = Run(1), threading.Event()
    done.set()
    answered, second = threading.Event(), threading.Event()
    run.start("a", done, answered)
    _until(lambda: run.order == ["a"] and run.turns._free == 1)
    run.start("b", second, None)
    _until(lambda: run.order == ["a", "b"])
    run.start("c", done, None)
    _until(lambda: len(run.turns._new) == 1)
    answered.set()
    _until(lambda: len(run.turns._begun) == 1)
    second.set()
    run.join()
    assert run.order == ["a", "b", "a again", "c"]
