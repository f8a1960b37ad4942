"""A call that does not come back does not take its caller with it."""

from __future__ import annotations

import threading
from operator import floordiv

import pytest

from streams.bus.kafka.client import within


def test_a_call_that_comes_back_in_time_gives_what_it_gives() -> None:
    assert within(30.0, floordiv, 7, 2) == 3
    with pytest.raises(ZeroDivisionError):
        within(30.0, floordiv, 7, 0)


def test_a_call_that_hangs_is_left_behind() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, never.wait)
    left = [t for t in threading.enumerate() if t.daemon and t.name.endswith("(work)")]
    assert left, "the call was not under way in a thread of its own"
    never.set()
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()
