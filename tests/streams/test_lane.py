"""Laws of the line before a handler: order, what may be combined, and its pace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import monotonic

import pytest

from streams.workers import topic_thread as lane
from streams.workers.topic_thread import Lane, Line, Rounds


@dataclass(frozen=True)
class _Message:
    offset: int
    value: bytes = b"x" * 10


async def _apart(messages: Sequence[_Message], apart_s: float) -> AsyncIterator[_Message]:
    for message in messages:
        yield message
        await asyncio.sleep(apart_s)


def _given_out(count: int, apart_s: float, rounds: Rounds, works_s: float = 0.0) -> list[list[int]]:
    """The offsets of each delivery, until the stream has ended; each is worked on for a while."""

    async def run() -> list[list[int]]:
        line = Line(_apart([_Message(n) for n in range(count)], apart_s), rounds)
        out = []
        while messages := await line.next():
            out.append([message.offset for message in messages])
            await asyncio.sleep(works_s)
        return out

    return asyncio.run(run())


def test_with_a_pace_what_comes_meanwhile_is_handed_over_together() -> None:
    started = monotonic()
    out = _given_out(20, 0.01, Rounds(1_000, 0.1))
    assert [offset for batch in out for offset in batch] == list(range(20))
    assert len(out) <= 1 + (monotonic() - started) / 0.1
    assert max(map(len, out)) > 1


@pytest.mark.parametrize(("combine_bytes", "most"), [(0, 1), (25, 2)])
def test_no_more_is_combined_than_may_be(combine_bytes: int, most: int) -> None:
    out = _given_out(9, 0.0, Rounds(combine_bytes, 0.05))
    assert [offset for batch in out for offset in batch] == list(range(9))
    assert max(map(len, out)) == most


@pytest.mark.parametrize(
    ("large_bytes", "first"),
    [(10, [[0], [1, 2, 3]]), (11, [[0], [1]])],
    ids=["behind", "in time"],
)
def test_who_is_behind_is_given_as_much_as_may_be_combined(
    monkeypatch: pytest.MonkeyPatch, large_bytes: int, first: list[list[int]]
) -> None:
    """One message of ten bytes is much, or it is not; thirty may be handed over at once."""
    monkeypatch.setattr(lane, "_LARGE_BYTES", large_bytes)
    monkeypatch.setattr(lane, "_PATIENCE", 200.0)
    assert _given_out(8, 0.05, Rounds(30, behind_s=9.0), 0.01)[:2] == first


@pytest.mark.parametrize(
    ("patience", "behind_s"), [(1e9, 0.3), (3.0, 1e9)], ids=["at most", "in proportion"]
)
def test_who_is_behind_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, patience: float, behind_s: float
) -> None:
    monkeypatch.setattr(lane, "_LARGE_BYTES", 1)
    monkeypatch.setattr(lane, "_PATIENCE", patience)
    began = monotonic()
    out = _given_out(2, 0.0, Rounds(1_000, behind_s=behind_s), 0.1)
    assert [offset for batch in out for offset in batch] == [0, 1]
    assert monotonic() - began >= 0.4


def test_who_is_behind_does_not_wait_where_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_LARGE_BYTES", 1), ("_PATIENCE", 1e9), ("_DRY_S", 0.2)):
        monkeypatch.setattr(lane, name, value)
    began = monotonic()
    out = _given_out(2, 0.0, Rounds(1_000, behind_s=60.0), 0.1)
    assert [offset for batch in out for offset in batch] == [0, 1]
    assert monotonic() - began < 30


def test_what_nobody_waits_for_any_more_is_not_worked_on() -> None:
    """Its partition has moved and come back, and the same messages wait once more."""
    turns: list[list[int]] = []
    first = threading.Event()

    def work(messages: list[_Message]) -> None:
        turns.append([message.offset for message in messages])
        first.wait(5)

    async def run() -> None:
        own = Lane("topic", work, most_bytes=99)
        held = asyncio.create_task(own.run([_Message(0)]))
        while not turns:
            await asyncio.sleep(0.01)
        left = asyncio.create_task(own.run([_Message(1)]))
        await asyncio.sleep(0.05)
        left.cancel()
        again = asyncio.create_task(own.run([_Message(1), _Message(2)]))
        await asyncio.sleep(0.05)
        first.set()
        await asyncio.gather(held, again)
        own.close()

    asyncio.run(run())
    assert turns == [[0], [1, 2]]


@pytest.mark.parametrize(("rests", "most"), [(False, []), (True, [0.03, 0.1])])
def test_a_resting_lane_pauses_as_long_as_it_worked_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, rests: bool, most: list[float]
) -> None:
    now, slept = [0.0], list[float]()
    monkeypatch.setattr(lane, "monotonic", lambda: now[0])
    monkeypatch.setattr(lane, "sleep", slept.append)

    def work(messages: list[_Message]) -> None:
        now[0] += len(messages[0].value) / 100  # a hundred bytes a second

    async def run() -> None:
        own = Lane("topic", work, rests=rests)
        for worked in (3, 500):
            await own.run([_Message(0, b"x" * worked)])
        await own.run([_Message(0, b"")])  # the pause before it is over
        own.close()

    asyncio.run(run())
    assert slept[: len(most)] == pytest.approx(most)
    assert bool(slept) == rests


@pytest.mark.parametrize(
    ("most_bytes", "turns"),
    [(0, [[0], [1], [2], [3]]), (20, [[0], [1, 2], [3]]), (99, [[0], [1, 2, 3]])],
    ids=["each alone", "two at most", "all that wait"],
)
def test_calls_that_wait_are_worked_on_together_and_all_are_told(
    most_bytes: int, turns: list[list[int]]
) -> None:
    """The first call keeps the thread until three others wait; the last work fails."""
    begun, go_on, seen = threading.Event(), threading.Event(), list[list[int]]()

    def work(messages: list[_Message]) -> None:
        seen.append([message.offset for message in messages])
        begun.set()
        assert go_on.wait(30)
        if messages[-1].offset == 3:
            raise ValueError("the last")

    async def run() -> list[BaseException | None]:
        own = Lane("topic", work, most_bytes)
        first = asyncio.create_task(own.run([_Message(0)]))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(own.run([_Message(n)])) for n in (1, 2, 3)]
        while own._calls.qsize() < len(others):
            await asyncio.sleep(0.001)
        go_on.set()
        told = await asyncio.gather(first, *others, return_exceptions=True)
        own.close()
        return told

    told = asyncio.run(run())
    assert seen == turns
    failed = [place for place, one in enumerate(told) if isinstance(one, ValueError)]
    assert failed == turns[-1]
