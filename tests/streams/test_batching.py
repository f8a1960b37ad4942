"""Laws of a partition's buffer: order, what is combined, and how long a batch waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from streams.workers import batching
from streams.workers.batching import BatchingPolicy, PartitionBuffer
from streams.workers.driver import FetchedMessage


async def _messages(count: int, interval_s: float) -> AsyncIterator[FetchedMessage]:
    """Of ten bytes each."""
    for offset in range(count):
        yield FetchedMessage("topic", 0, offset, b"x" * 10, {}, 0.0)
        await asyncio.sleep(interval_s)


def _batches(
    count: int, interval_s: float, policy: BatchingPolicy, work_s: float = 0.0
) -> list[list[int]]:
    """The offsets of each batch until the messages end; each batch is worked on for `work_s`."""

    async def run() -> list[list[int]]:
        buffer = PartitionBuffer(_messages(count, interval_s), policy)
        out = []
        while batch := await buffer.next_batch():
            out.append([message.offset for message in batch])
            await asyncio.sleep(work_s)
        return out

    return asyncio.run(run())


def _in_one(batches: list[list[int]]) -> list[int]:
    return [offset for batch in batches for offset in batch]


def test_messages_that_arrive_within_the_interval_are_combined() -> None:
    started = monotonic()
    out = _batches(20, 0.01, BatchingPolicy(1_000, 0.1))
    assert _in_one(out) == list(range(20))
    assert len(out) <= 1 + (monotonic() - started) / 0.1
    assert max(map(len, out)) > 1


@pytest.mark.parametrize(("combine_bytes", "most"), [(0, 1), (25, 2)])
def test_no_batch_exceeds_combine_bytes(combine_bytes: int, most: int) -> None:
    out = _batches(9, 0.0, BatchingPolicy(combine_bytes, 0.05))
    assert _in_one(out) == list(range(9))
    assert max(map(len, out)) == most


@pytest.mark.parametrize(
    ("lagging_bytes", "first"),
    [(10, [[0], [1, 2, 3]]), (11, [[0], [1]])],
    ids=["lagging", "on time"],
)
def test_a_lagging_partition_gets_full_batches(
    monkeypatch: pytest.MonkeyPatch, lagging_bytes: int, first: list[list[int]]
) -> None:
    """A batch of one message, of ten bytes, counts as large or not; a full one has thirty."""
    monkeypatch.setattr(batching, "_LAGGING_BYTES", lagging_bytes)
    monkeypatch.setattr(batching, "_LAG_WAIT_FACTOR", 200.0)
    assert _batches(8, 0.05, BatchingPolicy(30, max_lag_wait_s=9.0), 0.01)[:2] == first


@pytest.mark.parametrize(
    ("factor", "max_lag_wait_s"), [(1e9, 0.3), (3.0, 1e9)], ids=["the limit", "in proportion"]
)
def test_a_lagging_partition_waits_within_limits(
    monkeypatch: pytest.MonkeyPatch, factor: float, max_lag_wait_s: float
) -> None:
    monkeypatch.setattr(batching, "_LAGGING_BYTES", 1)
    monkeypatch.setattr(batching, "_LAG_WAIT_FACTOR", factor)
    started = monotonic()
    out = _batches(2, 0.0, BatchingPolicy(1_000, max_lag_wait_s=max_lag_wait_s), 0.1)
    assert _in_one(out) == [0, 1]
    assert monotonic() - started >= 0.4


def test_a_lagging_partition_does_not_wait_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_LAGGING_BYTES", 1), ("_LAG_WAIT_FACTOR", 1e9), ("_SILENCE_S", 0.2)):
        monkeypatch.setattr(batching, name, value)
    started = monotonic()
    out = _batches(2, 0.0, BatchingPolicy(1_000, max_lag_wait_s=60.0), 0.1)
    assert _in_one(out) == [0, 1]
    assert monotonic() - started < 30
