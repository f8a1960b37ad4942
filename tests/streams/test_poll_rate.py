"""Laws of a consume loop's rate: it pauses as long as it worked, unless it lags."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from streams.bus import consume
from streams.bus.consume import Input
from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.contract.topics import BEHAVIOUR, topic_specs

MIN_POLL_INTERVAL_S = 0.02


@dataclass
class _Time:
    """The loop's clock: it advances only when the loop sleeps or a test advances it."""

    now: float = 1_000.0
    slept: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> _Time:
    time = _Time()
    monkeypatch.setattr(consume, "time", time)
    return time


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    return bus


def _send(bus: MemoryBus, count: int) -> None:
    bus.producer().send([Outgoing(BEHAVIOUR, b"{}", partition=0)] * count)


def _slept_before_next(bus: MemoryBus, time: _Time, reader: Input, worked_s: float) -> float:
    """How long the next poll waits if processing this one takes `worked_s`."""
    assert reader.poll(0.0)
    time.now += worked_s
    before = time.slept
    _send(bus, 1)
    assert reader.poll(0.0)
    return time.slept - before


@pytest.mark.parametrize(
    ("worked_s", "pause_s"),
    [
        (0.001, MIN_POLL_INTERVAL_S - 0.001),  # not before the interval has passed
        (0.03, 0.03),  # as long as it worked
        (5.0, consume._MAX_IDLE_S),  # within a limit
    ],
)
def test_a_poll_is_followed_by_a_pause(
    bus: MemoryBus, time: _Time, worked_s: float, pause_s: float
) -> None:
    reader = Input(bus, BEHAVIOUR, "g", MIN_POLL_INTERVAL_S)
    _send(bus, 1)
    assert _slept_before_next(bus, time, reader, worked_s) == pytest.approx(pause_s)


def test_a_lagging_loop_does_not_pause(
    bus: MemoryBus, time: _Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consume, "MAX_POLL", 10)
    monkeypatch.setattr(consume, "_LAGGING_POLL", 10)
    reader = Input(bus, BEHAVIOUR, "g", MIN_POLL_INTERVAL_S)
    _send(bus, 25)
    assert _slept_before_next(bus, time, reader, worked_s=0.03) == 0.0


def test_a_single_record_after_an_idle_period_is_read_at_once(bus: MemoryBus, time: _Time) -> None:
    reader = Input(bus, BEHAVIOUR, "g", MIN_POLL_INTERVAL_S)
    _send(bus, 1)
    assert reader.poll(0.0)
    assert not reader.poll(0.0)
    time.now += 1.0
    slept = time.slept
    _send(bus, 1)
    assert reader.poll(0.0)
    assert time.slept == slept


def test_records_that_arrive_during_the_linger_belong_to_the_same_poll(
    bus: MemoryBus, time: _Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Input(bus, BEHAVIOUR, "g", linger_s=0.004)
    _send(bus, 1)
    sleep = time.sleep

    def sleep_and_send(seconds: float) -> None:
        sleep(seconds)
        if seconds:
            _send(bus, 2)

    monkeypatch.setattr(time, "sleep", sleep_and_send)
    assert len(reader.poll(0.0)) == 3
