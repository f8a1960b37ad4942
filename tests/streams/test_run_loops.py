"""Laws of loops that run in parallel: one failure stops them all."""

from __future__ import annotations

import threading

import pytest

from streams.bus.consume import run_loops


class IdleLoop:
    """Runs until it is stopped."""

    def __init__(self) -> None:
        self.closed = False

    def run_once(self, timeout_s: float) -> int:
        threading.Event().wait(timeout_s / 100)
        return 0

    def close(self) -> None:
        self.closed = True


class FailingLoop(IdleLoop):
    """Fails at once; its close waits until all loops are asked to stop."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self.stop, self.stopped_before_close = stop, False

    def run_once(self, timeout_s: float) -> int:
        super().run_once(timeout_s)
        raise ValueError("the cause")

    def close(self) -> None:
        self.stopped_before_close = self.stop.wait(30)
        super().close()


def test_a_failing_loop_stops_the_others_before_it_closes(caplog):
    stop = threading.Event()
    failing, idle = FailingLoop(stop), IdleLoop()
    with pytest.raises(ValueError, match="the cause"):
        run_loops({"failing": lambda: failing, "idle": lambda: idle}, stop)
    assert failing.stopped_before_close
    assert failing.closed
    assert idle.closed
    assert "failing ends: ValueError('the cause')" in caplog.text


def test_a_loop_that_cannot_be_created_stops_the_others():
    stop, idle = threading.Event(), IdleLoop()

    def make() -> IdleLoop:
        raise ValueError("no broker")

    with pytest.raises(ValueError, match="no broker"):
        run_loops({"broken": make, "idle": lambda: idle}, stop)
    assert idle.closed


def test_an_error_in_close_does_not_hide_the_cause():
    class Broken(FailingLoop):
        def close(self) -> None:
            raise OSError("while closing")

    stop = threading.Event()
    with pytest.raises(ValueError, match="the cause"):
        run_loops({"broken": lambda: Broken(stop)}, stop)
