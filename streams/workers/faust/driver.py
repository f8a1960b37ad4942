"""Faust as a `StreamDriver`, with guarantees that a worker needs and stock Faust lacks.

Knows Faust and aiokafka. Does not know batches or handlers (`streams.workers.worker`).

- Only committed records are read. Stock Faust does so in exactly-once mode only.
- Only offsets marked as processed are committed. Stock Faust adds up acknowledgements and fills
  gaps in the offsets. A transactional topic has a gap after every transaction, and filling one
  can commit past an unprocessed message. Gaps are not recorded either: they would add up, and
  make each message slower to commit than the last.
- After a rebalance, a partition's messages resume at its commit, without a gap. Stock Faust
  discards what it fetched during the rebalance and seeks to the commits, but not in partitions
  without a commit, and in another task than the one that fetches.
- No web server, no producer, no leader topic, no topics declared on the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from time import monotonic
from typing import Any, cast

import aiokafka
import faust
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.transport.conductor import Conductor
from faust.transport.drivers import aiokafka as stock
from faust.types import TP

from streams.bus.kafka.bus import FETCH_MIN_BYTES
from streams.workers.config import WorkerConfig
from streams.workers.driver import ConsumePartition, FetchedMessage
from streams.workers.faust.credentials import credentials

BUFFERED_MESSAGES = 16  # per agent; a message may have 900 kB
MAX_HEARTBEAT_S = 0.5  # a member learns of a rebalance by its next heartbeat
SEEK_PAUSE_S = 0.1
FETCH_WAIT_MS = 50  # the end of a transaction does not always wake a waiting fetch
_log = logging.getLogger(__name__)


class _WholeAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc]
    """Refuses incomplete assignments. A broker that restarts may not list a topic's partitions,
    and an assignment without them would leave the topic unread for good. The worker ends."""

    @classmethod
    def assign(cls, cluster: Any, members: Any) -> Any:
        topics = {topic for member in members.values() for topic in member.subscription}
        if unnamed := sorted(t for t in topics if not cluster.partitions_for_topic(t)):
            raise RuntimeError(f"the broker does not list the partitions of {unnamed} now")
        return super().assign(cluster, members)


class _CommittedThread(stock.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = _WholeAssignor
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=stock.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[_WholeAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            **cast(WorkerApp, self.app).fetch_options,
            **cast(WorkerApp, self.app).client_options,
            **stock.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1_000),
            request_timeout_ms=int(conf.broker_request_timeout * 1_000),
            session_timeout_ms=int(conf.broker_session_timeout * 1_000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1_000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1_000),
        )

    def leave_at_end(self) -> None:
        """Makes a static member leave like any other: it will not come back soon."""
        if self._consumer is not None and self._consumer._coordinator is not None:
            self._consumer._coordinator._group_instance_id = None

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Skips revoked partitions, and an empty commit, which would be an error."""
        assigned = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        return bool(assigned) and bool(await super()._commit(assigned))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seeks each assigned partition to its commit, or without one to its start: aiokafka
        would not seek the latter (its issue 1003)."""
        return cast(Mapping[TP, int], await self.call_thread(self._seek_to_committed))

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        assigned = list(consumer.assignment())
        commits = await asyncio.gather(*(consumer.committed(tp) for tp in assigned))
        starts = {tp: commit or 0 for tp, commit in zip(assigned, commits, strict=True)}
        for tp, offset in starts.items():
            consumer.seek(tp, offset)  # an offset past retention is reset to the earliest
        return {TP(tp.topic, tp.partition): offset for tp, offset in starts.items()}


class CommitProcessedConsumer(stock.Consumer):
    """Commits the offsets marked by `mark_processed`, by partition.

    Between two stops of the flow, a partition's messages start at its commit and have no gap: the
    fetching task itself seeks, before its first fetch after a stop, and discards what was fetched
    across a stop. A reader that takes ascending offsets only, and no `outdated` message, therefore
    misses none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._processed: dict[TP, int] = {}
        self._next: dict[TP, int] = {}  # where processing goes on, by assigned partition
        self._stops = 0  # of the flow; an assignment counts as one
        self._stopped_at = float("-inf")  # monotonic s
        self._positioned_at: int | None = None  # the stop after which the position is right

    def _new_consumer_thread(self) -> _CommittedThread:
        return _CommittedThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Any) -> Any:
        message = super()._to_message(tp, record)
        message.time_in = monotonic()  # the record was fetched no later than this
        return message

    def leave_at_end(self) -> None:
        """Other members take its partitions when it stops, not when its session times out."""
        cast(_CommittedThread, self._thread).leave_at_end()

    def outdated(self, message: Any) -> bool:
        """Whether the flow stopped after this was fetched: it is fetched again, in order."""
        return bool(message.time_in <= self._stopped_at)

    def stop_flow(self) -> None:
        self._interrupt()
        super().stop_flow()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self._interrupt()
        await super().on_partitions_assigned(assigned, generation_id)
        for tp in self._processed.keys() - assigned:  # marked late, by a cancelled agent
            del self._processed[tp]

    async def perform_seek(self) -> None:
        """Faust calls this in another task; the fetching task seeks instead (`getmany`)."""
        self._interrupt()

    def _interrupt(self) -> None:
        self._stops += 1
        self._stopped_at = monotonic()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """The next records, in order within each partition, round-robin over partitions."""
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))  # or until the end
        stops = self._stops
        if self._positioned_at != stops and not await self._seek_to_commits():
            return
        self._positioned_at = None
        records, _ = await self._wait_next_records(timeout)
        for tp, record in self.scheduler.iterate(records or {}):
            if self._stops != stops:
                return
            yield tp, self._to_message(tp, record)
        self._positioned_at = stops

    async def _seek_to_commits(self) -> bool:
        try:
            self._next = dict(await self.seek_to_committed())
        except (KafkaError, AssertionError) as error:  # another rebalance
            self.log.warning("could not seek to the committed offsets yet: %r", error)
            await self.sleep(SEEK_PAUSE_S)
            return False
        self._read_offset.clear()  # or Faust would drop repeated offsets
        return True

    def mark_processed(self, tp: TP, offset: int) -> None:
        """The effect of this message, and of all before it in the partition, is durable."""
        self._processed[tp] = offset + 1
        if tp in self._next:
            self._next[tp] = offset + 1

    def lags(self) -> Mapping[str, int]:
        """Per topic: see `StreamDriver.lags`."""
        found: dict[str, int] = {}
        for tp, at in self._next.items():
            if tp in self.assignment():
                found[tp.topic] = found.get(tp.topic, 0) + max(0, (self.highwater(tp) or 0) - at)
        return found

    async def _add_gap(self, *_: Any) -> None:
        """Does nothing: gaps are not filled. The arguments are Faust's."""

    async def force_commit(self, *_: Any, **__: Any) -> bool:
        """Commits everything processed. The arguments are Faust's and have no effect."""
        pending: Mapping[TP, int] = dict(self._processed)
        if not pending or not await self._commit(pending):
            return False
        for tp, offset in pending.items():
            if self._processed.get(tp) == offset:
                del self._processed[tp]
        return True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.commit()
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._processed.pop(tp, None)


class _Conductor(Conductor):
    """Keeps the subscription fixed while agents start and end with their partitions. Stock Faust
    subscribes again 45 s after an agent ended, without topics that have no agent at that moment,
    and blocks rebalances until then."""

    def _flag_changes(self) -> None:
        """Does nothing."""


class _Transport(stock.Transport):
    Consumer = CommitProcessedConsumer
    Conductor = _Conductor


class _ConsumerOnly(BootStrategy):
    enable_kafka_producer = False
    enable_web = False


class _NoTables(TableManager):
    """Skips the second that stock Faust waits for tables to be declared: there are none."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class WorkerApp(faust.App):
    """A Faust app that only consumes."""

    BootStrategy = _ConsumerOnly
    fetch_options: Mapping[str, int]  # aiokafka's
    client_options: Mapping[str, Any]  # of aiokafka, chosen by the owner

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


def worker_app(group: str, config: WorkerConfig) -> WorkerApp:
    """An app whose consumer group is `group`."""
    session_s = config.session_timeout_s
    app = WorkerApp(
        group,
        broker=[f"kafka://{server}" for server in config.bootstrap_servers.split(",")],
        broker_credentials=credentials(config.login),
        datadir=str(config.data_dir),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_wait_empty=False,
        stream_buffer_maxsize=BUFFERED_MESSAGES,
        stream_recovery_delay=0.0,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=min(session_s / 6, MAX_HEARTBEAT_S),
        broker_rebalance_timeout=max(session_s, 30.0),
        broker_request_timeout=max(2 * session_s, 30.0),
        broker_max_poll_interval=3_600.0,
        broker_commit_interval=config.commit_interval_s,
        consumer_group_instance_id=config.instance_id,
        TableManager=_NoTables,
    )
    app.client_options = config.login.faust_properties
    app.fetch_options = {"fetch_max_wait_ms": FETCH_WAIT_MS}
    if interval_s := config.batching.min_interval_s:
        # Batches that can wait: let the broker collect records, in few large responses.
        wait_ms = int(interval_s / 2 * 1_000)
        app.fetch_options = {"fetch_max_wait_ms": wait_ms, "fetch_min_bytes": FETCH_MIN_BYTES}
    return app


class FaustDriver:
    """Implements `streams.workers.driver.StreamDriver`."""

    def __init__(self, group: str, config: WorkerConfig) -> None:
        self._app = worker_app(group, config)

    def subscribe(self, topic: str, consume: ConsumePartition) -> None:
        """One agent per topic, one actor per partition."""
        channel = self._app.topic(
            topic, key_type=bytes, key_serializer="raw", value_type=bytes, value_serializer="raw"
        )
        agent = self._app.agent(channel, name=topic, isolated_partitions=True)

        async def consume_stream(stream: Any) -> None:
            try:
                await consume(_AssignedPartition(stream, self._consumer))
            except asyncio.CancelledError:
                # The new owner resumes at the commit. If this were raised, Faust would start an
                # agent for a partition that it no longer has.
                _log.info("%s: cancelled, a partition is revoked", topic)
            finally:
                # Before Faust looks up which agents have which partitions.
                self._app.topics.discard(stream.channel)

        agent(consume_stream)

    def on_assigned(self, callback: Callable[[], None]) -> None:
        @self._app.on_partitions_assigned.connect(weak=False)
        async def assigned(*_: Any, **__: Any) -> None:
            callback()

    async def start(self) -> None:
        await self._app.start()

    def lags(self) -> Mapping[str, int]:
        return self._consumer.lags()

    def failure(self) -> BaseException | None:
        if not (self._app.crashed or self._app.should_stop):
            return None
        reason: BaseException | None = self._app.crash_reason
        return reason or RuntimeError("it stopped by itself")

    async def stop(self, *, leave_group: bool) -> None:
        if leave_group:
            self._consumer.leave_at_end()
        await self._app.stop()

    @property
    def _consumer(self) -> CommitProcessedConsumer:
        return cast(CommitProcessedConsumer, self._app.consumer)


class _AssignedPartition:
    """Implements `streams.workers.driver.AssignedPartition` on an agent's stream."""

    def __init__(self, stream: Any, consumer: CommitProcessedConsumer) -> None:
        self._stream, self._consumer = stream, consumer

    async def messages(self) -> AsyncIterator[FetchedMessage]:
        """Skips messages that the agent had already, and outdated ones."""
        last = -1
        async for event in self._stream.noack().events():
            message = event.message
            if message.offset > last and not self._consumer.outdated(message):
                last = message.offset
                headers = {name: bytes(value or b"") for name, value in message.headers or ()}
                at = (message.topic, message.partition, last)
                yield FetchedMessage(*at, message.value or b"", headers, message.time_in)

    def mark_processed(self, message: FetchedMessage) -> None:
        self._consumer.mark_processed(TP(message.topic, message.partition), message.offset)
