"""Laws of what is added to Faust's driver, on Apache Kafka, in one process."""

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
from streams.workers.faust.driver import FinishedConsumer, WorkerApp, worker_app

WITHIN_S = 20.0
IN_FLIGHT_S = 1.5  # a fetch that was asked for before the flow stopped has come back


@asynccontextmanager
async def _following(
    servers: str, topic: str, folder: Path
) -> AsyncIterator[tuple[WorkerApp, list[int]]]:
    """An app with one agent that notes each message's offset and finishes none."""
    app = worker_app(
        f"group-{topic}", servers, folder, session_timeout_s=6.0, commit_interval_s=0.2,
        instance_id=None,
    )  # fmt: skip
    given: list[int] = []

    @app.agent(app.topic(topic, key_type=bytes, value_type=bytes, value_serializer="raw"))  # type: ignore[untyped-decorator]
    async def note(stream: Any) -> None:
        async for event in stream.noack().events():
            given.append(event.message.offset)

    await app.start()
    try:
        yield app, given
    finally:
        await app.stop()


async def _until(given: Sequence[int], offsets: set[int]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not offsets <= set(given):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("committed", [False, True])
def test_what_is_fetched_while_the_flow_stands_is_given_when_it_goes_on(
    kafka_broker: str, unique: str, tmp_path: Path, committed: bool
) -> None:
    """Also where the group has committed nothing yet, so that there is no commit to go back to."""
    bus, topic = KafkaBus(kafka_broker), f"driver-{unique}"
    bus.ensure_topics([TopicSpec(topic, 1)])
    producer = bus.producer()

    def send(count: int) -> None:
        producer.send([Outgoing(topic, b"x", partition=0) for _ in range(count)])

    async def run() -> list[int]:
        send(2)
        async with _following(kafka_broker, topic, tmp_path) as (app, given):
            consumer = cast(FinishedConsumer, app.consumer)
            await _until(given, {0, 1})
            if committed:
                consumer.finished(next(iter(consumer.assignment())), 1)
                await asyncio.sleep(1.0)
            given.clear()
            consumer.stop_flow()
            app.flow_control.suspend()
            send(3)
            await asyncio.sleep(IN_FLIGHT_S)
            assert given == []
            app.flow_control.resume()
            consumer.resume_flow()
            await _until(given, {2, 3, 4})
            return given

    given = asyncio.run(run())
    producer.close()
    assert given == list(range(2 if committed else 0, 5))


def test_what_was_finished_of_a_partition_that_has_gone_is_not_committed_and_harms_nobody(
    kafka_broker: str, unique: str, tmp_path: Path
) -> None:
    bus, topic = KafkaBus(kafka_broker), f"driver-{unique}"
    bus.ensure_topics([TopicSpec(topic, 1)])
    producer = bus.producer()
    producer.send([Outgoing(topic, b"x", partition=0)])

    async def run() -> tuple[list[bool], bool]:
        async with _following(kafka_broker, topic, tmp_path) as (app, given):
            consumer = cast(FinishedConsumer, app.consumer)
            await _until(given, {0})
            consumer.finished(TP(topic, 7), 3)
            alone = await consumer.force_commit()
            consumer.finished(TP(topic, 0), 0)
            return [alone, await consumer.force_commit()], app.crashed

    committed, crashed = asyncio.run(run())
    producer.close()
    assert committed == [False, True]
    assert not crashed
