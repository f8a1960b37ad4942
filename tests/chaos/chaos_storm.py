"""A storm of rebalances: members that join a group, are given partitions, and leave.

Knows groups and members. Each member reads what it is given and commits nothing, so its
partitions stand still until it leaves and whoever gets them next must begin where the last
commit was.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from chaos_world import World
from confluent_kafka import Consumer

from streams.contract.topics import ADMITTED, BEHAVIOUR, ENTITY_TOPIC, EVENTS_BY_USER

TOPICS = {
    "batcher": [BEHAVIOUR],
    "sequencer": [ADMITTED],
    "fanout": [EVENTS_BY_USER],
    "facts": [EVENTS_BY_USER],
    "features": list(ENTITY_TOPIC.values()),
}
AT_ONCE = 2
LONGEST_STAY = 40  # ticks, each a few milliseconds of the test's waiting
LONGEST_WAIT = 1_500  # ticks for a member that is given nothing


class Storm:
    """`joins` members in all. `tick` is called while the test waits; it never blocks long."""

    def __init__(self, world: World, joins: int) -> None:
        self._world, self._joins = world, joins
        self._members: list[tuple[Any, list[int]]] = []  # a consumer, its ticks to stay and to wait
        self.taken: Counter[str] = Counter()  # role -> how often a member was given partitions

    def over(self) -> bool:
        return not self._joins and not self._members

    def tick(self) -> None:
        if self._joins and len(self._members) < AT_ONCE:
            self._joins -= 1
            self._join(self._world.rng.choice(sorted(TOPICS)))
        for member, left in list(self._members):
            member.consume(100, 0.0)
            left[0] -= bool(member.assignment())  # it stays so long after it was given something
            left[1] -= 1
            if not all(left):
                member.close()
                self._members.remove((member, left))

    def _join(self, role: str) -> None:
        member = Consumer(
            {"bootstrap.servers": self._world.bus.bootstrap_servers,
             "group.id": self._world.group(role), "enable.auto.commit": False,
             "partition.assignment.strategy": "roundrobin", "isolation.level": "read_committed",
             "session.timeout.ms": 1_500, "heartbeat.interval.ms": 250}
        )  # fmt: skip

        def given(_: object, places: list[Any]) -> None:
            self.taken[role] += bool(places)
            self._world.tell(f"a stranger in {role} was given {len(places)} partitions")

        member.subscribe(TOPICS[role], on_assign=given)
        stay = self._world.rng.randint(1, LONGEST_STAY)
        self._members.append((member, [stay, LONGEST_WAIT]))
