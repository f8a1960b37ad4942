"""Faust's Kafka driver, with the promises that a worker needs and the stock one lacks.

Knows Faust and aiokafka. Does not know batches or handlers (`streams.workers.worker`).

- Only committed records are read; stock Faust does so in exactly-once mode alone.
- What is committed is what was declared finished, and nothing else. Stock Faust adds up
  acknowledgements and fills gaps in the offsets by itself; a transactional topic has a
  gap after every transaction, and filling one can commit past an unfinished message.
  Gaps are not even noted: nobody would take them up, and a partition's next message
  would cost the more the longer the worker had lived.
- A partition is given out from its commit on, without a hole, however often partitions
  move. Stock Faust drops what it fetched while they move and seeks back to the commits,
  but not where nothing was committed yet, and beside the task that fetches.
- No web server, no producer, no leader topic, nothing declared on the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
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

from streams.bus.kafka.bus import GATHERED_BYTES

BUFFERED_MESSAGES = 16  # per agent; a message may be as large as 900 kB
HEARTBEAT_S = 0.5  # at most: so late does a member hear that partitions move
SEEK_PAUSE_S = 0.1
FETCH_WAIT_MS = 50  # a transaction's end does not always wake a fetch that waits for it


class _WholeAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc]
    """Assigns nothing by half: while a broker comes back it may not name a topic's partitions,
    and an assignment without them would leave the topic unread for good. The worker ends."""

    @classmethod
    def assign(cls, cluster: Any, members: Any) -> Any:
        topics = {topic for member in members.values() for topic in member.subscription}
        if unnamed := sorted(t for t in topics if not cluster.partitions_for_topic(t)):
            raise RuntimeError(f"the broker does not name the partitions of {unnamed} now")
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
            **cast(WorkerApp, self.app).fetching,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1_000),
            request_timeout_ms=int(conf.broker_request_timeout * 1_000),
            session_timeout_ms=int(conf.broker_session_timeout * 1_000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1_000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1_000),
        )

    def leave_at_end(self) -> None:
        """Also a static member gives its partitions up at once: it does not come back soon."""
        if self._consumer is not None and self._consumer._coordinator is not None:
            self._consumer._coordinator._group_instance_id = None

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Of partitions that have gone nothing is committed: an empty commit is an error there."""
        held = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        return bool(held) and bool(await super()._commit(held))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seeks all assigned partitions to their commits, and to the start those without, which
        aiokafka leaves where they are (its issue 1003)."""
        return cast(Mapping[TP, int], await self.call_thread(self._seek_to_committed))

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        places = list(consumer.assignment())
        offsets = await asyncio.gather(*(consumer.committed(place) for place in places))
        sought = {place: offset or 0 for place, offset in zip(places, offsets, strict=True)}
        for place, offset in sought.items():
            consumer.seek(place, offset)  # one that is gone by now is reset to the earliest
        return {TP(place.topic, place.partition): offset for place, offset in sought.items()}


class FinishedConsumer(stock.Consumer):
    """Commits the offsets that `finished` named, each partition's own.

    What it gives of a partition between two stops of the flow begins at the commit and has
    no hole: the task that fetches also seeks, before its first fetch after a stop, and
    what was fetched across a stop is dropped. So whoever takes messages in the order of
    their offsets, and none that is `outdated`, misses none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._finished: dict[TP, int] = {}
        self._stops = 0  # how often the flow was stopped, or partitions were given
        self._stopped_at = float("-inf")  # monotonic s
        self._in_place: int | None = None  # the stop since which all that was fetched was given

    def _new_consumer_thread(self) -> _CommittedThread:
        return _CommittedThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, record: Any) -> Any:
        message = super()._to_message(tp, record)
        message.time_in = monotonic()  # the record was fetched no later than this
        return message

    def leave_at_end(self) -> None:
        """Its partitions go to others as it stops, and not only when its session is over."""
        cast(_CommittedThread, self._thread).leave_at_end()

    def outdated(self, message: Any) -> bool:
        """Whether the flow stopped after this was fetched: it comes again, in its order."""
        return bool(message.time_in <= self._stopped_at)

    def stop_flow(self) -> None:
        self._interrupt()
        super().stop_flow()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self._interrupt()
        await super().on_partitions_assigned(assigned, generation_id)
        for tp in self._finished.keys() - assigned:  # by an agent that has ended with it
            del self._finished[tp]

    async def perform_seek(self) -> None:
        """Faust asks for it beside the fetching task; that task does it (`getmany`)."""
        self._interrupt()

    def _interrupt(self) -> None:
        self._stops += 1
        self._stopped_at = monotonic()

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """What the broker has next, each partition's in order, the partitions in turn."""
        if not self.flow_active:
            await self.wait(cast(Any, self.can_resume_flow))  # or until the end
        stops = self._stops
        if self._in_place != stops and not await self._seek_to_commits():
            return
        self._in_place = None
        records, _ = await self._wait_next_records(timeout)
        for tp, record in self.scheduler.iterate(records or {}):
            if self._stops != stops:
                return
            yield tp, self._to_message(tp, record)
        self._in_place = stops

    async def _seek_to_commits(self) -> bool:
        try:
            await self.seek_to_committed()
        except (KafkaError, AssertionError) as error:  # partitions move again
            self.log.warning("not at the committed offsets yet: %r", error)
            await self.sleep(SEEK_PAUSE_S)
            return False
        self._read_offset.clear()  # what is given again is not dropped
        return True

    def finished(self, tp: TP, offset: int) -> None:
        """The effect of this message, and of all before it in the partition, is durable."""
        self._finished[tp] = offset + 1

    async def _add_gap(self, *_: Any) -> None:
        """No gap is filled here; the arguments are Faust's."""

    async def force_commit(self, *_: Any, **__: Any) -> bool:
        """Commits everything finished; the arguments are Faust's and change nothing."""
        pending: Mapping[TP, int] = dict(self._finished)
        if not pending or not await self._commit(pending):
            return False
        for tp, offset in pending.items():
            if self._finished.get(tp) == offset:
                del self._finished[tp]
        return True

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.commit()
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._finished.pop(tp, None)


class _Conductor(Conductor):
    """Agents come and go with partitions; what is subscribed to never changes. Stock Faust
    subscribes anew 45 s after an agent went, without the topics that have no agent just then,
    and lets a rebalance wait for it."""

    def _flag_changes(self) -> None:
        """Nothing has changed."""


class _Transport(stock.Transport):
    Consumer = FinishedConsumer
    Conductor = _Conductor


class _ConsumerOnly(BootStrategy):
    enable_kafka_producer = False
    enable_web = False


class _NoTables(TableManager):
    """Stock Faust gives tables a second to be declared; a worker has none to wait for."""

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class WorkerApp(faust.App):
    """A Faust app that only consumes."""

    BootStrategy = _ConsumerOnly
    fetching: Mapping[str, int]  # aiokafka's words for how long an answer may be gathered

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


def worker_app(
    group: str,
    bootstrap_servers: str,
    data_dir: Path,
    *,
    session_timeout_s: float,
    commit_interval_s: float,
    instance_id: str | None,
    gather_s: float = 0.0,
) -> WorkerApp:
    """An app whose consumer group is `group`; `instance_id` makes its membership static.
    `gather_s`: as of `Bus.consumer`."""
    app = WorkerApp(
        group,
        broker=[f"kafka://{server}" for server in bootstrap_servers.split(",")],
        datadir=str(data_dir),
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_wait_empty=False,
        stream_buffer_maxsize=BUFFERED_MESSAGES,
        stream_recovery_delay=0.0,
        broker_session_timeout=session_timeout_s,
        broker_heartbeat_interval=min(session_timeout_s / 6, HEARTBEAT_S),
        broker_rebalance_timeout=max(session_timeout_s, 30.0),
        broker_request_timeout=max(2 * session_timeout_s, 30.0),
        broker_max_poll_interval=3_600.0,
        broker_commit_interval=commit_interval_s,
        consumer_group_instance_id=instance_id,
        TableManager=_NoTables,
    )
    app.fetching = {"fetch_max_wait_ms": FETCH_WAIT_MS}
    if gather_s:
        wait_ms = int(gather_s * 1_000)
        app.fetching = {"fetch_max_wait_ms": wait_ms, "fetch_min_bytes": GATHERED_BYTES}
    return app
