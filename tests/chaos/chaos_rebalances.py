"""Injects rebalances: members that join a group, are assigned partitions, and leave.

Knows groups and members. A member reads what it is assigned and commits nothing, so its
partitions make no progress until it leaves, and their next owner must resume at the last commit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from chaos_cluster import Cluster
from confluent_kafka import Consumer

from streams.contract.topics import ADMITTED, BEHAVIOUR, ENTITY_TOPIC, EVENTS_BY_USER

TOPICS = {
    "batcher": [BEHAVIOUR],
    "sequencer": [ADMITTED],
    "fanout": [EVENTS_BY_USER],
    "log-writer": [EVENTS_BY_USER],
    "features": list(ENTITY_TOPIC.values()),
}
MAX_MEMBERS = 2
MAX_STAY = 40  # ticks, each a few milliseconds of the test's waiting
MAX_WAIT = 1_500  # ticks for a member without an assignment


class RebalanceInjector:
    """`joins` members in all. Call `tick` while the test waits; it never blocks for long."""

    def __init__(self, cluster: Cluster, joins: int) -> None:
        self._cluster, self._joins = cluster, joins
        self._members: list[tuple[Any, list[int]]] = []  # a consumer; its ticks to stay and to wait
        self.assigned: Counter[str] = Counter()  # role -> how often a member got partitions

    def done(self) -> bool:
        return not self._joins and not self._members

    def tick(self) -> None:
        if self._joins and len(self._members) < MAX_MEMBERS:
            self._joins -= 1
            self._join(self._cluster.rng.choice(sorted(TOPICS)))
        for member, left in list(self._members):
            member.consume(100, 0.0)
            left[0] -= bool(member.assignment())  # the stay starts with the assignment
            left[1] -= 1
            if not all(left):
                member.close()
                self._members.remove((member, left))

    def _join(self, role: str) -> None:
        member = Consumer(
            {"bootstrap.servers": self._cluster.bus.bootstrap_servers,
             "group.id": self._cluster.group(role), "enable.auto.commit": False,
             "partition.assignment.strategy": "roundrobin", "isolation.level": "read_committed",
             "session.timeout.ms": 1_500, "heartbeat.interval.ms": 250}
        )  # fmt: skip

        def on_assign(_: object, partitions: list[Any]) -> None:
            self.assigned[role] += bool(partitions)
            self._cluster.note(f"a new member of {role} was assigned {len(partitions)} partitions")

        member.subscribe(TOPICS[role], on_assign=on_assign)
        stay = self._cluster.rng.randint(1, MAX_STAY)
        self._members.append((member, [stay, MAX_WAIT]))
