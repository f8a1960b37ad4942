"""The soak's arithmetic; the stack itself is run by `python -m benchmarks soak --quick`."""

from __future__ import annotations

import os

import pytest

from benchmarks.soak.load import Written
from benchmarks.soak.memory import MemorySamples, growth_per_hour
from deploy.supervisor import ServiceStatus


def test_growth_is_a_share_of_the_first_value_per_hour() -> None:
    series = [(10.0 * n, 200.0 + 0.1 * n) for n in range(60)]
    assert growth_per_hour(series) == pytest.approx(0.1 * 360 / 200)
    assert growth_per_hour(series[:2]) == 0.0
    assert growth_per_hour([(0.0, 100.0)] * 2 + [(5.0, 100.0)] * 3) == pytest.approx(0.0, abs=1e-9)


def test_samples_are_of_the_processes_that_run() -> None:
    class Stack:
        def status(self) -> list[ServiceStatus]:
            me = ServiceStatus("me", "running", os.getpid(), 0)
            return [me, ServiceStatus("gone", "waiting", None, 1)]

    samples = MemorySamples(Stack())  # type: ignore[arg-type]
    samples.take(1.0)
    assert list(samples.by_process) == ["me"]
    assert samples.by_process["me"][0][1] > 10
    assert samples.line().startswith("    1 s, MB: me ")


def test_bytes_are_counted_per_event_also_without_events() -> None:
    assert "50 and the broker 100 bytes per event" in str(Written(10, 1.0, 500, 1000))
    assert "0 events" in str(Written())
