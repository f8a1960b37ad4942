"""Kills amid the work: which part, and after which share of the messages, is drawn by a seed.

Knows the parts and how they are killed and started again. All of it is done by the thread that
waits, so that whoever waits also keeps the parts alive, as the stack's supervisor does.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from benchmarks.events.processes import WHOLE, Mill
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER

VICTIMS = (*WHOLE, "broker", "store")
OPEN_S, ANSWER_S, LOOK_S = 1.0, 1.0, 0.01
EARLIEST, LATEST = 0.02, 0.95  # of the messages

Say = Callable[[str], None]


@dataclass
class Storm:
    """`each`: how often each part is killed while `messages` go through the door."""

    mill: Mill
    rng: random.Random
    messages: int
    each: int
    say: Say
    kills: Counter[str] = field(default_factory=Counter)
    in_transaction: int = 0  # kills that cut a transaction off

    def __post_init__(self) -> None:
        victims = [name for name in VICTIMS for _ in range(self.each)]
        self.rng.shuffle(victims)
        moments = sorted(self.rng.uniform(EARLIEST, LATEST) for _ in victims)
        self._blows = list(zip(moments, victims, strict=True))
        servers = self.mill.servers
        self._admin = _admin(servers)
        self._written = _watch(servers, "read_uncommitted")
        self._committed = _watch(servers, "read_committed")
        self._done = 0

    def over(self) -> bool:
        return not self._blows

    def until(self, true: Callable[[], bool], what: str, within_s: float) -> bool:
        """Waits, killing and starting again; whether it came true."""
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > within_s:
                self.say(f"not within {within_s:.0f} s: {what}")
                return False
            if self._blows and self._share() >= self._blows[0][0]:
                self._strike(*self._blows.pop(0))
            self._tend()
            time.sleep(LOOK_S)
        return True

    def close(self) -> None:
        self._written.close()
        self._committed.close()

    def _strike(self, share: float, victim: str) -> None:
        if victim in ("batcher", "broker"):
            deadline = time.monotonic() + OPEN_S
            while not (cut := self._transaction_open()) and time.monotonic() < deadline:
                time.sleep(LOOK_S / 5)
            self.in_transaction += cut
        self.say(f"kill -9 {victim} at {share:.0%} of the messages")
        self.kills[victim] += 1
        if victim == "broker":
            self.mill.kill_broker()
        elif victim == "store":
            self.mill.kill_store()
        else:
            self.mill.children[victim].kill()

    def _tend(self) -> None:
        for name, child in list(self.mill.children.items()):
            if not child.alive():
                self.say(f"{name} ended with {child.exit_code()} and starts again")
                self.mill.start_soon(name)

    def _share(self) -> float:
        """Of the messages, those that the door has committed; as last known."""
        try:
            self._done = max(self._done, self._committed_by_the_door())
        except (KafkaException, TimeoutError):
            # The broker is away; and a client that knew its coordinator may not find it again.
            self._admin = _admin(self.mill.servers)
        return self._done / self.messages

    def _committed_by_the_door(self) -> int:
        listed = self._admin.list_consumer_groups().result(ANSWER_S).valid
        names = [g.group_id for g in listed if g.group_id.startswith("tidemill-batcher.")]
        found = 0
        for name in names:
            asked = ConsumerGroupTopicPartitions(name)
            places = self._admin.list_consumer_group_offsets([asked])[name].result(ANSWER_S)
            found += sum(p.offset for p in places.topic_partitions
                         if p.topic == BEHAVIOUR and p.offset > 0)  # fmt: skip
        return found

    def _transaction_open(self) -> bool:
        try:
            return any(
                self._written.get_watermark_offsets(p, 1)[1]
                != self._committed.get_watermark_offsets(p, 1)[1]
                for p in self._places()
            )
        except KafkaException:
            return False

    def _places(self) -> list[TopicPartition]:
        count = self.mill.settings.broker.partitions
        return [TopicPartition(EVENTS_BY_USER, partition) for partition in range(count)]


def _admin(servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": servers, "log_level": 2})


def _watch(servers: str, isolation: str) -> Consumer:
    """A consumer that only asks where partitions end."""
    return Consumer(
        {"bootstrap.servers": servers, "group.id": "storm-watch", "isolation.level": isolation,
         "log_level": 2}
    )  # fmt: skip
