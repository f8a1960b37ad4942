"""Laws of a loop's pace: it rests as long as it worked, and never while it is far behind."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from streams.bus import consume as loop
from streams.bus.consume import Input
from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.contract.topics import BEHAVIOUR, topic_specs

PACE_S = 0.02


@dataclass
class _Time:
    """The loop's own clock: it goes on only when the loop sleeps or a test says so."""

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
    monkeypatch.setattr(loop, "time", time)
    return time


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    return bus


def _send(bus: MemoryBus, count: int) -> None:
    bus.producer().send([Outgoing(BEHAVIOUR, b"{}", partition=0)] * count)


def _slept_before_next(bus: MemoryBus, time: _Time, reader: Input, worked_s: float) -> float:
    """How long the next poll waits when the round that begins now takes `worked_s`."""
    assert reader.poll(0.0)
    time.now += worked_s
    before = time.slept
    _send(bus, 1)
    assert reader.poll(0.0)
    return time.slept - before


@pytest.mark.parametrize(
    ("worked_s", "rests_s"),
    [
        (0.001, PACE_S - 0.001),  # no sooner than the pace
        (0.03, 0.03),  # as long as it worked
        (5.0, loop._LONGEST_REST_S),  # but not for ever
    ],
)
def test_a_round_is_followed_by_a_rest(
    bus: MemoryBus, time: _Time, worked_s: float, rests_s: float
) -> None:
    reader = Input(bus, BEHAVIOUR, "g", PACE_S)
    _send(bus, 1)
    assert _slept_before_next(bus, time, reader, worked_s) == pytest.approx(rests_s)


def test_a_loop_that_is_far_behind_does_not_rest(
    bus: MemoryBus, time: _Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_POLL", 10)
    monkeypatch.setattr(loop, "_FULL", 10)
    reader = Input(bus, BEHAVIOUR, "g", PACE_S)
    _send(bus, 25)
    assert _slept_before_next(bus, time, reader, worked_s=0.03) == 0.0


def test_a_lone_record_after_a_quiet_while_is_taken_at_once(bus: MemoryBus, time: _Time) -> None:
    reader = Input(bus, BEHAVIOUR, "g", PACE_S)
    _send(bus, 1)
    assert reader.poll(0.0)
    assert not reader.poll(0.0)
    time.now += 1.0
    slept = time.slept
    _send(bus, 1)
    assert reader.poll(0.0)
    assert time.slept == slept


def test_what_comes_while_a_poll_settles_is_of_the_same_round(
    bus: MemoryBus, time: _Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Input(bus, BEHAVIOUR, "g", settle_s=0.004)
    _send(bus, 1)
    sleep = time.sleep

    def and_more_comes(seconds: float) -> None:
        sleep(seconds)
        if seconds:
            _send(bus, 2)

    monkeypatch.setattr(time, "sleep", and_more_comes)
    assert len(reader.poll(0.0)) == 3
