"""A call that does not return does not block its caller."""

from __future__ import annotations

import threading
from operator import floordiv

import pytest

from streams.bus.kafka.client import call_with_timeout


def test_a_call_that_returns_in_time_gives_its_result() -> None:
    assert call_with_timeout(30.0, floordiv, 7, 2) == 3
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(30.0, floordiv, 7, 0)


def test_a_call_that_hangs_is_abandoned() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError):
        call_with_timeout(0.05, never.wait)
    left = [t for t in threading.enumerate() if t.daemon and t.name.endswith("(work)")]
    assert left, "the call does not run in its own thread"
    never.set()
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()
