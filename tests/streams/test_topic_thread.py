"""Laws of a topic's thread: calls never overlap, queued ones are combined, revoked ones skipped."""

from __future__ import annotations

import asyncio
import threading

import pytest

from streams.workers import topic_thread
from streams.workers.driver import FetchedMessage
from streams.workers.topic_thread import Messages, TopicThread


def _message(offset: int, value: bytes = b"x" * 10) -> FetchedMessage:
    return FetchedMessage("topic", 0, offset, value, {}, 0.0)


def test_a_cancelled_call_is_skipped() -> None:
    """Its partition was revoked and assigned again: the same messages are queued once more."""
    calls: list[list[int]] = []
    first_may_end = threading.Event()

    def work(messages: Messages) -> None:
        calls.append([message.offset for message in messages])
        assert first_may_end.wait(30)

    async def run() -> None:
        thread = TopicThread("topic", work, combine_bytes=99)
        held = asyncio.create_task(thread.run([_message(0)]))
        while not calls:
            await asyncio.sleep(0.01)
        cancelled = asyncio.create_task(thread.run([_message(1)]))
        while thread._calls.qsize() < 1:
            await asyncio.sleep(0.001)
        cancelled.cancel()
        repeated = asyncio.create_task(thread.run([_message(1), _message(2)]))
        while thread._calls.qsize() < 2:
            await asyncio.sleep(0.001)
        first_may_end.set()
        await asyncio.gather(held, repeated)
        thread.close()

    asyncio.run(run())
    assert calls == [[0], [1, 2]]


@pytest.mark.parametrize(("low_priority", "pauses"), [(False, []), (True, [0.03, 0.1])])
def test_a_low_priority_thread_pauses_as_long_as_it_worked_within_a_limit(
    monkeypatch: pytest.MonkeyPatch, low_priority: bool, pauses: list[float]
) -> None:
    now, slept = [0.0], list[float]()
    monkeypatch.setattr(topic_thread, "monotonic", lambda: now[0])
    monkeypatch.setattr(topic_thread, "sleep", slept.append)

    def work(messages: Messages) -> None:
        now[0] += len(messages[0].value) / 100  # a hundred bytes a second

    async def run() -> None:
        thread = TopicThread("topic", work, low_priority=low_priority)
        for size in (3, 500):
            await thread.run([_message(0, b"x" * size)])
        await thread.run([_message(0, b"")])  # starts after the pause before it
        thread.close()

    asyncio.run(run())
    assert slept[: len(pauses)] == pytest.approx(pauses)
    assert bool(slept) == low_priority


@pytest.mark.parametrize(
    ("combine_bytes", "calls"),
    [(0, [[0], [1], [2], [3]]), (20, [[0], [1, 2], [3]]), (99, [[0], [1, 2, 3]])],
    ids=["each alone", "two at most", "all that are queued"],
)
def test_queued_calls_are_combined_and_each_gets_the_outcome(
    combine_bytes: int, calls: list[list[int]]
) -> None:
    """The first call blocks the thread until three others are queued; the last call fails."""
    started, may_end, seen = threading.Event(), threading.Event(), list[list[int]]()

    def work(messages: Messages) -> None:
        seen.append([message.offset for message in messages])
        started.set()
        assert may_end.wait(30)
        if messages[-1].offset == 3:
            raise ValueError("the last")

    async def run() -> list[BaseException | None]:
        thread = TopicThread("topic", work, combine_bytes)
        first = asyncio.create_task(thread.run([_message(0)]))
        while not started.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(thread.run([_message(n)])) for n in (1, 2, 3)]
        while thread._calls.qsize() < len(others):
            await asyncio.sleep(0.001)
        may_end.set()
        outcomes = await asyncio.gather(first, *others, return_exceptions=True)
        thread.close()
        return outcomes

    outcomes = asyncio.run(run())
    assert seen == calls
    failed = [offset for offset, one in enumerate(outcomes) if isinstance(one, ValueError)]
    assert failed == calls[-1]
