"""Laws of the Faust driver, on Apache Kafka, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from faust.types import TP

from streams.bus.contract import Outgoing
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import TopicSpec
from streams.workers.config import WorkerConfig
from streams.workers.faust.driver import CommitProcessedConsumer, WorkerApp, worker_app

TIMEOUT_S = 20.0
FETCH_DONE_S = 1.5  # by then a fetch that was sent before the flow stopped has returned


@asynccontextmanager
async def _running_app(
    servers: str, topic: str, folder: Path
) -> AsyncIterator[tuple[WorkerApp, list[int]]]:
    """An app with one agent that records each message's offset and marks none as processed."""
    config = WorkerConfig(bootstrap_servers=servers, data_dir=folder, commit_interval_s=0.2)
    app = worker_app(f"group-{topic}", config)
    given: list[int] = []

    @app.agent(app.topic(topic, key_type=bytes, value_type=bytes, value_serializer="raw"))  # type: ignore[untyped-decorator]
    async def record(stream: Any) -> None:
        async for event in stream.noack().events():
            given.append(event.message.offset)

    await app.start()
    try:
        yield app, given
    finally:
        await app.stop()


async def _await_offsets(given: Sequence[int], offsets: set[int]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not offsets <= set(given):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("committed", [False, True])
def test_records_fetched_while_the_flow_is_stopped_are_delivered_when_it_resumes(
    kafka_broker: str, unique: str, tmp_path: Path, committed: bool
) -> None:
    """Also without any commit of the group to seek to."""
    bus, topic = KafkaBus(kafka_broker), f"driver-{unique}"
    bus.ensure_topics([TopicSpec(topic, 1)])
    producer = bus.producer()

    def send(count: int) -> None:
        producer.send([Outgoing(topic, b"x", partition=0) for _ in range(count)])

    async def run() -> list[int]:
        send(2)
        async with _running_app(kafka_broker, topic, tmp_path) as (app, given):
            consumer = cast(CommitProcessedConsumer, app.consumer)
            await _await_offsets(given, {0, 1})
            if committed:
                consumer.mark_processed(next(iter(consumer.assignment())), 1)
                await asyncio.sleep(1.0)
            given.clear()
            consumer.stop_flow()
            app.flow_control.suspend()
            send(3)
            await asyncio.sleep(FETCH_DONE_S)
            assert given == []
            app.flow_control.resume()
            consumer.resume_flow()
            await _await_offsets(given, {2, 3, 4})
            return given

    given = asyncio.run(run())
    producer.close()
    assert given == list(range(2 if committed else 0, 5))


def test_offsets_of_a_revoked_partition_are_not_committed_and_do_not_block_others(
    kafka_broker: str, unique: str, tmp_path: Path
) -> None:
    bus, topic = KafkaBus(kafka_broker), f"driver-{unique}"
    bus.ensure_topics([TopicSpec(topic, 1)])
    producer = bus.producer()
    producer.send([Outgoing(topic, b"x", partition=0)])

    async def run() -> tuple[list[bool], bool]:
        async with _running_app(kafka_broker, topic, tmp_path) as (app, given):
            consumer = cast(CommitProcessedConsumer, app.consumer)
            await _await_offsets(given, {0})
            consumer.mark_processed(TP(topic, 7), 3)
            revoked_only = await consumer.force_commit()
            consumer.mark_processed(TP(topic, 0), 0)
            return [revoked_only, await consumer.force_commit()], app.crashed

    committed, crashed = asyncio.run(run())
    producer.close()
    assert committed == [False, True]
    assert not crashed


def test_lag_is_what_is_not_marked_as_processed(
    kafka_broker: str, unique: str, tmp_path: Path
) -> None:
    bus, topic = KafkaBus(kafka_broker), f"lag-{unique}"
    bus.ensure_topics([TopicSpec(topic, 1)])
    bus.producer().send([Outgoing(topic, b"x", partition=0) for _ in range(5)])

    async def run() -> list[int]:
        async with _running_app(kafka_broker, topic, tmp_path) as (app, given):
            consumer = cast(CommitProcessedConsumer, app.consumer)
            await _await_offsets(given, {0, 1, 2, 3, 4})
            tp, lags = next(iter(consumer.assignment())), [consumer.lags()[topic]]
            consumer.mark_processed(tp, 2)
            lags.append(consumer.lags()[topic])
            consumer.mark_processed(tp, 4)
            return [*lags, consumer.lags()[topic]]

    assert asyncio.run(run()) == [5, 2, 0]
