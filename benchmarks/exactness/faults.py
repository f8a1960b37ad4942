"""Kills processes and servers during a run, at shares of the messages drawn by a seed.

Knows how they are killed and restarted. The waiting thread does both, and restarts what has
ended, as the stack's supervisor would. Does not know what is checked.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks.events.cluster import WHOLE_PATH, Cluster
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER

TARGETS = (*WHOLE_PATH, "broker", "store")
OPEN_S, ANSWER_S, CHECK_S = 1.0, 1.0, 0.01
EARLIEST, LATEST = 0.02, 0.95  # of the messages


@dataclass
class FaultInjector:
    """`each`: how often each target is killed while `messages` are ingested."""

    cluster: Cluster
    rng: random.Random
    messages: int
    each: int
    report: Callable[[str], None]
    kills: Counter[str] = field(default_factory=Counter)
    in_transaction: int = 0  # kills that interrupted an open transaction

    def __post_init__(self) -> None:
        targets = [name for name in TARGETS for _ in range(self.each)]
        self.rng.shuffle(targets)
        moments = sorted(self.rng.uniform(EARLIEST, LATEST) for _ in targets)
        self._kills_due = list(zip(moments, targets, strict=True))
        servers = self.cluster.servers
        self._admin = _admin(servers)
        self._written = _end_reader(servers, "read_uncommitted")
        self._committed = _end_reader(servers, "read_committed")
        self._done = 0

    def finished(self) -> bool:
        return not self._kills_due

    def run_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> bool:
        """Kills and restarts until the condition holds; False after the timeout."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > timeout_s:
                self.report(f"not within {timeout_s:.0f} s: {what}")
                return False
            if self._kills_due and self._share() >= self._kills_due[0][0]:
                self._kill(*self._kills_due.pop(0))
            self._restart_ended()
            time.sleep(CHECK_S)
        return True

    def close(self) -> None:
        self._written.close()
        self._committed.close()

    def _kill(self, share: float, target: str) -> None:
        if target in ("batcher", "broker"):
            deadline = time.monotonic() + OPEN_S
            while not (is_open := self._transaction_open()) and time.monotonic() < deadline:
                time.sleep(CHECK_S / 5)
            self.in_transaction += is_open
        self.report(f"kill -9 {target} at {share:.0%} of the messages")
        self.kills[target] += 1
        if target == "broker":
            self.cluster.kill_broker()
        elif target == "store":
            self.cluster.kill_store()
        else:
            self.cluster.children[target].kill()

    def _restart_ended(self) -> None:
        for name, child in list(self.cluster.children.items()):
            if not child.alive():
                self.report(f"{name} ended with {child.exit_code()} and is restarted")
                self.cluster.start_soon(name)

    def _share(self) -> float:
        """The share of the messages that ingest has committed; as last known."""
        try:
            self._done = max(self._done, self._committed_messages())
        except (KafkaException, TimeoutError):
            # The broker is down; a client that knew its coordinator may not find it again.
            self._admin = _admin(self.cluster.servers)
        return self._done / self.messages

    def _committed_messages(self) -> int:
        listed = self._admin.list_consumer_groups().result(ANSWER_S).valid
        names = [g.group_id for g in listed if g.group_id.startswith("tidemill-batcher.")]
        found = 0
        for name in names:
            request = ConsumerGroupTopicPartitions(name)
            offsets = self._admin.list_consumer_group_offsets([request])[name].result(ANSWER_S)
            found += sum(p.offset for p in offsets.topic_partitions
                         if p.topic == BEHAVIOUR and p.offset > 0)  # fmt: skip
        return found

    def _transaction_open(self) -> bool:
        try:
            return any(
                self._written.get_watermark_offsets(p, 1)[1]
                != self._committed.get_watermark_offsets(p, 1)[1]
                for p in self._partitions()
            )
        except KafkaException:
            return False

    def _partitions(self) -> list[TopicPartition]:
        count = self.cluster.settings.broker.partitions
        return [TopicPartition(EVENTS_BY_USER, partition) for partition in range(count)]


def _admin(servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": servers, "log_level": 2})


def _end_reader(servers: str, isolation: str) -> Consumer:
    """A consumer that only asks for the ends of partitions."""
    return Consumer(
        {"bootstrap.servers": servers, "group.id": "injector-watch", "isolation.level": isolation,
         "log_level": 2}
    )  # fmt: skip
