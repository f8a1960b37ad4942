"""Laws of loops that run beside each other: one that fails ends them all, at once."""

from __future__ import annotations

import threading

import pytest

from streams.bus.consume import run_loops


class Quiet:
    """Turns until it is told to stop."""

    def __init__(self) -> None:
        self.closed = False

    def turn(self, timeout_s: float) -> int:
        threading.Event().wait(timeout_s / 100)
        return 0

    def close(self) -> None:
        self.closed = True


class Failing(Quiet):
    """Fails in its first turn, and its closing waits until everyone was told to stop."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self.stop, self.told = stop, False

    def turn(self, timeout_s: float) -> int:
        super().turn(timeout_s)
        raise ValueError("the cause")

    def close(self) -> None:
        self.told = self.stop.wait(30)
        super().close()


def test_a_loop_that_fails_tells_the_others_before_it_closes(caplog):
    stop = threading.Event()
    failing, quiet = Failing(stop), Quiet()
    with pytest.raises(ValueError, match="the cause"):
        run_loops({"failing": lambda: failing, "quiet": lambda: quiet}, stop)
    assert failing.told
    assert failing.closed
    assert quiet.closed
    assert "failing ends: ValueError('the cause')" in caplog.text


def test_a_loop_that_cannot_be_made_ends_the_others():
    stop, quiet = threading.Event(), Quiet()

    def unmade() -> Quiet:
        raise ValueError("no broker")

    with pytest.raises(ValueError, match="no broker"):
        run_loops({"unmade": unmade, "quiet": lambda: quiet}, stop)
    assert quiet.closed


def test_what_closing_raises_does_not_hide_the_cause():
    class Broken(Failing):
        def close(self) -> None:
            raise OSError("while closing")

    stop = threading.Event()
    with pytest.raises(ValueError, match="the cause"):
        run_loops({"broken": lambda: Broken(stop)}, stop)
