"""Laws of bounded concurrency: no more run at once, others wait, and those that would be late are
told when to ask again."""

from __future__ import annotations

import threading
from collections import deque

import anyio
import numpy as np
import pytest

from serving.http.capacity import Busy, Capacity


class Gate:
    """Calls that wait until the gate is opened."""

    def __init__(self) -> None:
        self.opened, self.running, self.most = threading.Event(), 0, 0
        self._lock = threading.Lock()

    def call(self) -> str:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.opened.wait(30.0)
        with self._lock:
            self.running -= 1
        return "done"


async def _until_waiting(capacity: Capacity, count: int) -> None:
    with anyio.fail_after(30.0):
        while capacity.waiting < count:
            await anyio.sleep(0.001)


def test_at_most_so_many_run_and_the_others_wait_for_their_turn() -> None:
    gate, capacity, answers = Gate(), Capacity(running=2), []

    async def ask() -> None:
        answers.append(await capacity.run(gate.call))

    async def run() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(7):
                group.start_soon(ask)
            await _until_waiting(capacity, 7)
            with anyio.fail_after(30.0):
                while gate.running < 2:  # a thread that was given a call may not run it yet
                    await anyio.sleep(0.001)
            gate.opened.set()

    anyio.run(run)
    assert answers == ["done"] * 7
    assert gate.most == 2
    assert capacity.waiting == 0


def test_a_request_that_would_be_late_is_rejected_with_the_time_to_ask_again() -> None:
    gate, capacity = Gate(), Capacity(running=1, longest_s=1.0)
    capacity._between_s = 0.9  # as after a while of slow replies

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(capacity.run, gate.call)  # runs: no turn has to be waited for
            await _until_waiting(capacity, 1)
            with pytest.raises(Busy, match="retry in 1 s") as refused:
                await capacity.run(gate.call)
            assert refused.value.retry_after_s == 1
            gate.opened.set()

    anyio.run(run)
    assert gate.most == 1


def test_a_gateway_that_is_busy_answers_429_with_retry_after(make_harness: object) -> None:
    harness = make_harness(streams=False)  # type: ignore[operator]
    capacity: Capacity = harness.client.app.state.capacity
    capacity._between_s, capacity.waiting = 0.5, 1_000
    refused = harness.client.post("/v1/feed", json={"user_id": "u1"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "500")
    capacity.waiting = 0
    assert harness.client.post("/v1/feed", json={"user_id": "u1"}).status_code == 200


def _answered(per_s: float, seconds: float = 20.0) -> tuple[list[float], int]:
    """Seconds of each answered request and the number of rejected ones, where a gateway answers
    one request each 7 ms and they come at random times. In simulated time."""
    capacity = Capacity(running=16, longest_s=0.6)
    gaps_s = np.random.default_rng(1).exponential(1 / per_s, int(per_s * seconds))
    ends: deque[float] = deque()
    took, refused = [], 0
    for now_s in np.cumsum(gaps_s).tolist():
        while ends and ends[0] <= now_s:
            capacity._observe_end(ends.popleft())
            capacity.waiting -= 1
        try:
            capacity._refuse_if_late()
        except Busy:
            refused += 1
            continue
        capacity.waiting += 1
        ends.append(max(ends[-1] if ends else 0.0, now_s) + 0.007)
        took.append(ends[-1] - now_s)
    return took, refused


def test_at_twice_the_rate_the_accepted_are_in_time_and_no_turn_is_left_unused() -> None:
    usual, refused = _answered(0.95 / 0.007)
    assert refused == 0
    took, refused = _answered(2 / 0.007)
    assert refused > 0
    assert max(took) < 0.8, "little more than `longest_s`"
    later = took[len(took) // 10 :]
    assert np.percentile(later, 99) < 0.3, "little more than 0.4 of it, once it has lasted"
    assert len(took) > 0.98 * 20.0 / 0.007
    assert np.percentile(later, 99) < 1.5 * np.percentile(usual, 99)
