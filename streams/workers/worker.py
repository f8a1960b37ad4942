"""The Faust worker: committed batches from internal topics to handlers, at least once.

Knows topics, batches, retries and epochs. Does not know what a handler does with a
batch. One batch per partition is in flight, acknowledged after its handler has
returned. A handler that raises is called again; when it goes on raising, the worker
ends and says why, and whoever starts it again finds the batch where it was: retry or
exit, never skip. Messages that queue while a batch is in flight may be handed over as
one delivery (`Rounds`); they are retried and acknowledged together.

Epochs. A topic that was made anew starts again at offset 0 under another topic id. The
worker asks for that id after a batch was fetched and before it is handled, and about
once a second besides; when it has changed, the worker ends, and starts again in a
consumer group of the new epoch. So a stamp never names an epoch that its batch is not of.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from streams import telemetry
from streams.bus.consume import spare_the_collector
from streams.bus.contract import Bus, BusError, Stamp
from streams.bus.delivery import BatchHandler, Delivery, combine, in_order
from streams.bus.kafka.bus import KafkaBus
from streams.contract.schema import EVENT_SCHEMA, BatchReader
from streams.workers.faust.driver import FinishedConsumer, WorkerApp, worker_app
from streams.workers.topic_thread import Lane, Line, Rounds

__all__ = ["BatchHandler", "Delivery", "Exit", "Patience", "Rounds", "in_order", "run_worker"]

_log = logging.getLogger(__name__)
_EACH_ALONE = Rounds()


class Exit(IntEnum):
    """What `run_worker` returns; anything but STOPPED wants the worker started again."""

    STOPPED = 0  # it was asked to
    GAVE_UP = 1  # a handler kept failing; its batch is not acknowledged
    CRASHED = 2  # the consumer failed
    NEW_EPOCH = 3  # a topic was made anew


@dataclass(frozen=True)
class Patience:
    """How long the worker waits for what may come back, in seconds."""

    topics_s: float = 60.0  # at the start, for topics to exist
    handler_s: float = 60.0  # for a failing handler
    first_pause_s: float = 0.05  # between attempts, doubled each time
    longest_pause_s: float = 2.0
    stop_s: float = 10.0  # at the end, for the batch in flight and the consumer


class EpochChanged(RuntimeError):
    """The topic's offsets have started again."""


class GaveUp(RuntimeError):
    """A handler failed for longer than the worker's patience."""


class Epochs:
    """The topics' ids as they were at the start, and when they were last confirmed.

    One question is about all of them, so that lanes that ask at once wait for one answer.
    """

    def __init__(self, bus: Bus, topics: list[str]) -> None:
        self._bus = bus
        self._confirmed = time.monotonic()
        self._asking = threading.Lock()
        self.known = bus.epochs(topics)

    def confirm(self, topic: str, fetched_at: float) -> str:
        """The epoch of a message that was fetched no later than `fetched_at` (monotonic s).

        An id never comes back, so one that still stands after the fetch stood during it.

        Raises:
            EpochChanged: a topic was made anew since the worker started.
            BusError: the broker does not say.
        """
        if self._confirmed < fetched_at:
            with self._asking:
                if self._confirmed < fetched_at:
                    self._ask()
        return self.known[topic]

    def _ask(self) -> None:
        asked = time.monotonic()
        found = self._bus.epochs(list(self.known))
        if changed := [topic for topic, epoch in self.known.items() if found[topic] != epoch]:
            raise EpochChanged(f"topic {changed[0]!r} was made anew: its offsets start again")
        self._confirmed = asked

    def group(self, name: str) -> str:
        """A consumer group of these epochs, so that no offset outlives its epoch."""
        text = ",".join(f"{topic}={epoch}" for topic, epoch in sorted(self.known.items()))
        return f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class _Worker:
    """One life of a worker: from joining the group to its end."""

    def __init__(
        self,
        handlers: Mapping[str, BatchHandler],
        epochs: Epochs,
        patience: Patience,
        rounds: Rounds,
        resting: Collection[str],
        schemas: Mapping[str, pa.Schema],
    ) -> None:
        self._handlers = handlers
        self._readers = {t: BatchReader(schemas.get(t, EVENT_SCHEMA)) for t in handlers}
        self._rounds, self._resting = rounds, resting
        self._epochs = epochs
        self._patience = patience
        self._ending = threading.Event()
        self.exit: Exit | None = None

    def end(self, exit_: Exit, why: str = "", error: BaseException | None = None) -> None:
        """The first reason stands."""
        if self.exit is None:
            self.exit = exit_
            if why:
                _log.error("worker ends: %s", why, exc_info=error)
        self._ending.set()

    @property
    def ending(self) -> bool:
        return self._ending.is_set()

    def declare(self, app: WorkerApp) -> list[Lane]:
        """One agent per topic, one actor per partition."""
        lanes = []
        most_bytes = self._rounds.combine_bytes if self._rounds.across else 0
        for topic in self._handlers:
            work, rests = partial(self._deliver, topic), topic in self._resting
            lane = Lane(topic, work, most_bytes, rests)
            lanes.append(lane)
            channel = app.topic(
                topic, key_type=bytes, key_serializer="raw", value_type=bytes,
                value_serializer="raw",
            )  # fmt: skip
            agent = app.agent(channel, name=topic, isolated_partitions=True)
            agent(self._agent(app, topic, lane))
        return lanes

    def _agent(self, app: WorkerApp, topic: str, lane: Lane) -> Callable[[Any], Any]:
        async def deliver(stream: Any) -> None:
            consumer = cast(FinishedConsumer, app.consumer)
            line = Line(_each_once(stream, consumer), self._rounds)
            try:
                while messages := await line.next():
                    await self._handled(lane, messages)
                    consumer.finished(messages[-1].tp, messages[-1].offset)
            except asyncio.CancelledError:
                # The partition moves, and whoever has it next begins at its commit. Raised,
                # it would have Faust start an agent for a partition that it does not have.
                _log.info("%s: cut off, a partition moves", topic)
            finally:
                line.close()
                app.topics.discard(stream.channel)  # before Faust asks who has which partition

        return deliver

    async def _handled(self, lane: Lane, messages: list[Any]) -> None:
        """Returns when the handler has; when it will not, the worker ends."""
        try:
            await lane.run(messages)
        except EpochChanged as changed:
            self.end(Exit.NEW_EPOCH, str(changed))
        except Exception as error:
            self.end(Exit.GAVE_UP, f"{_places(messages)}: {error!r}")
        if self.ending:
            # Returning or raising would let Faust go on to the next message.
            await asyncio.get_running_loop().create_future()

    def _deliver(self, topic: str, messages: Sequence[Any]) -> None:
        if self.ending:
            return
        pause = self._patience.first_pause_s
        deadline = time.monotonic() + self._patience.handler_s
        while True:
            try:
                return self._attempt(topic, messages)
            except EpochChanged:
                raise
            except Exception as error:
                _log.warning("%s failed, again in %.2f s: %r", _places(messages), pause, error)
                telemetry.RETRIES.labels(topic).inc()
                if time.monotonic() + pause > deadline:
                    raise
            if self._ending.wait(pause):
                raise GaveUp("asked to stop while retrying")
            pause = min(2 * pause, self._patience.longest_pause_s)

    def _attempt(self, topic: str, messages: Sequence[Any]) -> None:
        epoch = self._epochs.confirm(topic, max(message.time_in for message in messages))
        read = self._readers[topic]
        delivery = combine([_delivery(topic, epoch, message, read) for message in messages])
        started = time.perf_counter()
        with telemetry.batch_span(f"handle {topic}", delivery.headers, _attributes(delivery)):
            self._handlers[topic](delivery)
        telemetry.HANDLE_SECONDS.labels(topic).observe(time.perf_counter() - started)
        telemetry.EVENTS_HANDLED.labels(topic).inc(delivery.table.num_rows)

    def watch(self, stop: threading.Event) -> None:
        """Until the end: looks for a request to stop and, now and then, at the epochs.

        A consumer whose topic was made anew may hear nothing at all, so waiting for a
        batch is not enough.
        """
        asked = time.monotonic()
        while not self._ending.wait(0.05):
            if stop.is_set():
                return self.end(Exit.STOPPED)
            if time.monotonic() - asked > 1.0:
                asked = time.monotonic()
                try:
                    self._epochs.confirm(next(iter(self._handlers)), asked)
                except EpochChanged as changed:
                    self.end(Exit.NEW_EPOCH, str(changed))
                except BusError as error:
                    _log.warning("epochs are not known now: %s", error)


async def _each_once(stream: Any, consumer: FinishedConsumer) -> AsyncIterator[Any]:
    """An agent's messages in the order of their offsets: of those that were given again, because
    a partition moved, none that the agent has already, and none that was left behind."""
    last = -1
    async for event in stream.noack().events():
        message = event.message
        if message.offset > last and not consumer.outdated(message):
            last = message.offset
            yield message


def _delivery(topic: str, epoch: str, message: Any, read: BatchReader) -> Delivery:
    headers = {name: bytes(value) for name, value in (message.headers or ())}
    stamp = Stamp(epoch, message.partition, message.offset)
    return Delivery(topic, stamp, read(message.value), headers, message.value)


def _places(messages: Sequence[Any]) -> str:
    """ "topic[partition]@first-last", for each partition."""
    spans: dict[tuple[str, int], list[int]] = {}
    for message in messages:
        spans.setdefault((message.topic, message.partition), []).append(message.offset)
    return ", ".join(
        f"{topic}[{partition}]@{offsets[0]}" + (f"-{offsets[-1]}" if len(offsets) > 1 else "")
        for (topic, partition), offsets in spans.items()
    )


def _attributes(delivery: Delivery) -> dict[str, str | int]:
    stamp = delivery.stamp
    return {
        "messaging.destination.name": delivery.topic,
        "messaging.destination.partition.id": str(stamp.partition),
        "messaging.kafka.offset": stamp.offset,
        "messaging.batch.message_count": delivery.table.num_rows,
        "tidemill.epoch": stamp.epoch,
    }


def run_worker(
    name: str,
    handlers: Mapping[str, BatchHandler],
    *,
    bootstrap_servers: str,
    data_dir: Path,
    stop: threading.Event | None = None,
    ready: Callable[[], None] = lambda: None,
    patience: Patience = Patience(),
    session_timeout_s: float = 6.0,
    commit_interval_s: float = 1.0,
    instance_id: str | None = None,
    rounds: Rounds = _EACH_ALONE,
    resting: Collection[str] = (),
    schemas: Mapping[str, pa.Schema] | None = None,
) -> int:
    """Delivers each topic of `handlers` to its handler until `stop` is set or SIGTERM comes.

    A handler gets one topic's batches from one thread; handlers of different topics run
    beside each other. `ready` is called when partitions have been assigned. In the main
    thread SIGTERM and SIGINT end the worker like `stop`. Workers of one `name` share the
    partitions; a distinct, lasting `instance_id` each spares a rebalance on restart. The
    embedded broker answers a join after half of `session_timeout_s` and makes a static
    member wait 6 s: there, give 2 s and no `instance_id`.

    `rounds`: give those that combine messages only where every handler tells what it has
    seen by row or message, as `FeatureStore.fold` does. Handlers of the topics `resting`
    pause for as long as they worked, in favour of the others. `schemas`: the columns that a
    topic's handler is given, EVENT_SCHEMA's where nothing is said.

    Returns an `Exit`; after any other than STOPPED the caller starts a new process.
    """
    stop = stop or threading.Event()
    _catch_signals(stop)
    bus = KafkaBus(bootstrap_servers)
    epochs = _await_epochs(bus, list(handlers), patience, stop)
    if epochs is None:
        return Exit.STOPPED if stop.is_set() else Exit.CRASHED
    app = worker_app(
        epochs.group(name),
        bootstrap_servers,
        data_dir,
        session_timeout_s=session_timeout_s,
        commit_interval_s=commit_interval_s,
        instance_id=instance_id,
        gather_s=rounds.pace_s / 2,
    )
    spare_the_collector()
    worker = _Worker(handlers, epochs, patience, rounds, resting, schemas or {})
    watcher = threading.Thread(target=worker.watch, args=(stop,), name="watch", daemon=True)
    watcher.start()
    with asyncio.Runner() as runner:
        runner.run(_live(app, worker, ready, patience))
    return int(worker.exit if worker.exit is not None else Exit.CRASHED)


def _catch_signals(stop: threading.Event) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())


def _await_epochs(
    bus: Bus, topics: list[str], patience: Patience, stop: threading.Event
) -> Epochs | None:
    deadline = time.monotonic() + patience.topics_s
    while not stop.is_set():
        try:
            return Epochs(bus, topics)
        except BusError as error:
            if time.monotonic() > deadline:
                _log.error("worker ends: %s", error)
                return None
            stop.wait(0.2)
    return None


async def _live(
    app: WorkerApp, worker: _Worker, ready: Callable[[], None], patience: Patience
) -> None:
    lanes = worker.declare(app)

    @app.on_partitions_assigned.connect(weak=False)
    async def assigned(*_: Any, **__: Any) -> None:
        ready()

    try:
        await app.start()
        while not worker.ending:
            if app.crashed or app.should_stop:
                why = f"the consumer failed: {app.crash_reason!r}"
                worker.end(Exit.CRASHED, why, app.crash_reason)
            await asyncio.sleep(0.05)
    except Exception as error:
        worker.end(Exit.CRASHED, f"the consumer did not start: {error!r}", error)
    finally:
        if worker.exit is Exit.STOPPED:
            cast(FinishedConsumer, app.consumer).leave_at_end()
        with suppress(asyncio.TimeoutError, Exception):
            await asyncio.wait_for(app.stop(), patience.stop_s)
        for lane in lanes:
            lane.close()
