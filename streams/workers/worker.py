"""The worker: committed batches from internal topics to handlers, at least once.

Knows the plan of a batch and how a worker ends. Does not know what a handler does, nor the stream
framework (`streams.workers.driver`).

Per partition, one batch is in flight. It is marked as processed after its handler has returned.
A handler that raises is called again; when it keeps failing, the worker ends with the reason,
and the batch is delivered again after a restart: retry or exit, never skip. Combined messages
(`BatchingPolicy`) are retried and marked together.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from functools import partial

from streams import metrics, telemetry
from streams.bus.consume import LAG_EVERY_S, tune_gc
from streams.bus.contract import BusError, Stamp
from streams.bus.delivery import BatchHandler, Delivery, combine
from streams.bus.kafka.bus import KafkaBus
from streams.codec.batches import read_value
from streams.contract.schema import BatchReader, event_schema
from streams.workers.batching import PartitionBuffer
from streams.workers.config import WorkerConfig
from streams.workers.driver import AssignedPartition, FetchedMessage, StreamDriver
from streams.workers.retry import call_with_retry
from streams.workers.topic_ids import TopicIds, TopicRecreated, await_topic_ids
from streams.workers.topic_thread import TopicThread

_WATCH_S, _TOPIC_ID_CHECK_S = 0.05, 1.0
_log = logging.getLogger(__name__)

DriverFactory = Callable[[str, WorkerConfig], StreamDriver]
"""Makes a driver for a consumer group."""


class Exit(IntEnum):
    """What `run_worker` returns; after anything but STOPPED the worker must be restarted."""

    STOPPED = 0  # it was asked to stop
    GAVE_UP = 1  # a handler kept failing; its batch is not committed
    CRASHED = 2  # the consumer failed
    TOPIC_RECREATED = 3


class _Worker:
    """One run of a worker, from joining the group to its end."""

    def __init__(
        self, handlers: Mapping[str, BatchHandler], topic_ids: TopicIds, config: WorkerConfig
    ) -> None:
        self._handlers, self._topic_ids, self._config = handlers, topic_ids, config
        schemas = config.schemas
        self._readers = {t: BatchReader(schemas.get(t, event_schema())) for t in handlers}
        self._ending = threading.Event()
        self.exit: Exit | None = None

    def subscribe(self, driver: StreamDriver) -> list[TopicThread]:
        """One thread per topic, one buffer per partition."""
        batching, threads = self._config.batching, []
        combine_bytes = batching.combine_bytes if batching.across_partitions else 0
        for topic in self._handlers:
            process = partial(self._process_with_retry, topic)
            low_priority = topic in self._config.low_priority_topics
            threads.append(TopicThread(topic, process, combine_bytes, low_priority))
            driver.subscribe(topic, partial(self._consume, threads[-1]))
        return threads

    async def _consume(self, thread: TopicThread, partition: AssignedPartition) -> None:
        """The plan: fetch → batch → confirm topic id → decode → handle → mark processed.

        The driver commits what is marked. The middle three run in the topic's thread.
        """
        buffer = PartitionBuffer(partition.messages(), self._config.batching)
        try:
            while messages := await buffer.next_batch():
                await self._process_in(thread, messages)
                partition.mark_processed(messages[-1])
        finally:
            buffer.close()

    def _process(self, topic: str, messages: list[FetchedMessage]) -> None:
        topic_id = self._topic_ids.confirm(topic, max(each.fetched_at for each in messages))
        delivery = combine([self._decode(each, topic_id) for each in messages])
        started = time.perf_counter()
        with telemetry.batch_span(f"handle {topic}", delivery.headers, _attributes(delivery)):
            self._handlers[topic](delivery)
        metrics.HANDLE_SECONDS.labels(topic).observe(time.perf_counter() - started)
        metrics.EVENTS_HANDLED.labels(topic).inc(delivery.table.num_rows)

    def _decode(self, message: FetchedMessage, topic_id: str) -> Delivery:
        stamp = Stamp(topic_id, message.partition, message.offset)
        read = self._readers[message.topic]
        place = (message.topic, message.partition, message.offset)
        table = read_value(message.value, place, read)
        if table is None:  # foreign: delivered without rows, so that its offset is committed
            return Delivery(message.topic, stamp, read.schema.empty_table())
        return Delivery(message.topic, stamp, table, message.headers, message.value)

    def _process_with_retry(self, topic: str, messages: list[FetchedMessage]) -> None:
        if self.ending:
            return

        def warn(error: Exception, pause_s: float) -> None:
            _log.warning("%s failed, retry in %.2f s: %r", _ranges(messages), pause_s, error)
            metrics.RETRIES.labels(topic).inc()

        call_with_retry(
            partial(self._process, topic, messages),
            self._config.retry,
            self._ending,
            fatal=TopicRecreated,
            on_failure=warn,
        )

    async def _process_in(self, thread: TopicThread, messages: list[FetchedMessage]) -> None:
        """Returns when the handler has; if it keeps failing, the worker ends."""
        try:
            await thread.run(messages)
        except TopicRecreated as recreated:
            self.end(Exit.TOPIC_RECREATED, str(recreated))
        except Exception as error:
            self.end(Exit.GAVE_UP, f"{_ranges(messages)}: {error!r}")
        if self.ending:
            # Returning or raising would let the driver continue with the next message.
            await asyncio.get_running_loop().create_future()

    def end(self, exit_: Exit, why: str = "", error: BaseException | None = None) -> None:
        """Only the first reason counts."""
        if self.exit is None:
            self.exit = exit_
            if why:
                _log.error("worker ends: %s", why, exc_info=error)
        self._ending.set()

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    def watch(self, stop: threading.Event) -> None:
        """Until the end: checks for a request to stop and, every second, the topic ids.

        The consumer of a recreated topic may receive nothing at all, so the check before each
        batch is not enough.
        """
        checked = time.monotonic()
        while not self._ending.wait(_WATCH_S):
            if stop.is_set():
                return self.end(Exit.STOPPED)
            if time.monotonic() - checked > _TOPIC_ID_CHECK_S:
                checked = time.monotonic()
                try:
                    self._topic_ids.confirm(next(iter(self._handlers)), checked)
                except TopicRecreated as recreated:
                    self.end(Exit.TOPIC_RECREATED, str(recreated))
                except BusError as error:
                    _log.warning("topic ids are unknown for now: %s", error)


def _ranges(messages: list[FetchedMessage]) -> str:
    """ "topic[partition]@first-last", for each partition."""
    offsets: dict[tuple[str, int], list[int]] = {}
    for message in messages:
        offsets.setdefault((message.topic, message.partition), []).append(message.offset)
    return ", ".join(
        f"{topic}[{partition}]@{own[0]}" + (f"-{own[-1]}" if len(own) > 1 else "")
        for (topic, partition), own in offsets.items()
    )


def _attributes(delivery: Delivery) -> dict[str, str | int]:
    stamp = delivery.stamp
    return {
        "messaging.destination.name": delivery.topic,
        "messaging.destination.partition.id": str(stamp.partition),
        "messaging.kafka.offset": stamp.offset,
        "messaging.batch.message_count": delivery.table.num_rows,
        "tidemill.topic_id": stamp.topic_id,
    }


def run_worker(
    name: str,
    handlers: Mapping[str, BatchHandler],
    config: WorkerConfig,
    *,
    stop: threading.Event | None = None,
    ready: Callable[[], None] = lambda: None,
    make_driver: DriverFactory | None = None,
) -> int:
    """Delivers each topic of `handlers` to its handler until `stop` is set or SIGTERM arrives.

    A handler gets one topic's batches from one thread; handlers of different topics run in
    parallel. Workers of one `name` share the partitions. `ready` is called when partitions are
    assigned. In the main thread SIGTERM and SIGINT end the worker like `stop`. `make_driver`:
    the stream framework; default: Faust.

    Returns an `Exit`; after any but STOPPED the caller must start a new process.
    """
    stop = stop or threading.Event()
    _stop_on_signals(stop)
    bus = KafkaBus(config.bootstrap_servers, login=config.login)
    topic_ids = await_topic_ids(bus, list(handlers), config.retry.topics_s, stop)
    if topic_ids is None:
        return Exit.STOPPED if stop.is_set() else Exit.CRASHED
    driver = (make_driver or _faust_driver)(topic_ids.consumer_group(name), config)
    driver.on_assigned(ready)
    tune_gc()
    worker = _Worker(handlers, topic_ids, config)
    watcher = threading.Thread(target=worker.watch, args=(stop,), name="watch", daemon=True)
    watcher.start()
    with asyncio.Runner() as runner:
        runner.run(_drive(driver, worker, name, config.retry.stop_s))
    return int(worker.exit if worker.exit is not None else Exit.CRASHED)


def _faust_driver(group: str, config: WorkerConfig) -> StreamDriver:
    # The import takes half a second; other drivers do not need it.
    from streams.workers.faust.driver import FaustDriver

    return FaustDriver(group, config)


def _stop_on_signals(stop: threading.Event) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())


def _export_lags(driver: StreamDriver, name: str) -> None:
    with suppress(Exception):  # amid a rebalance; a measurement must not end the worker
        for topic, lag in driver.lags().items():
            metrics.CONSUMER_LAG.labels(metrics.base_group(name), topic).set(lag)


async def _drive(driver: StreamDriver, worker: _Worker, name: str, stop_s: float) -> None:
    """Runs the driver until the worker ends; its stop may take `stop_s`."""
    threads, measured = worker.subscribe(driver), time.monotonic()
    try:
        await driver.start()
        while not worker.ending:
            if failure := driver.failure():
                worker.end(Exit.CRASHED, f"the consumer failed: {failure!r}", failure)
            if time.monotonic() - measured > LAG_EVERY_S:
                measured = time.monotonic()
                _export_lags(driver, name)
            await asyncio.sleep(_WATCH_S)
    except Exception as error:
        worker.end(Exit.CRASHED, f"the consumer did not start: {error!r}", error)
    finally:
        with suppress(asyncio.TimeoutError, Exception):
            leave = worker.exit is Exit.STOPPED
            await asyncio.wait_for(driver.stop(leave_group=leave), stop_s)
        for thread in threads:
            thread.close()
