"""How far the work of a chaos cluster has come, and whether a fault interrupted it.

Knows the broker's offsets, the log and the stored rows. Does not know processes or faults
(`chaos_cluster`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import xxhash
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from features.live.worker import consumer_group
from features.online.redis_store import FeastFeatureStore
from features.rows.decode import decode
from streams.bus.kafka.bus import KafkaBus
from streams.contract.topics import (
    ADMITTED,
    BEHAVIOUR,
    BEHAVIOUR_DEAD,
    ENTITY_TOPIC,
    EVENTS_BY_USER,
)
from streams.event_log import EventLog
from streams.ingest.dead_letters import DeadLetter, scan_dead_letters
from streams.workers.topic_ids import TopicIds

_INPUT = {
    "batcher": BEHAVIOUR,
    "sequencer": ADMITTED,
    "fanout": EVENTS_BY_USER,
}  # loop -> its input


@dataclass
class Progress:
    """What a cluster's servers and files show. `attach` first."""

    partitions: int = 2
    replicas: int = 1  # of the ingest service
    old_dead_letters: list[DeadLetter] = field(default_factory=list)

    def attach(self, bus: KafkaBus, store: FeastFeatureStore, log: EventLog) -> None:
        self.bus, self.store, self.log = bus, store, log
        self.admin = AdminClient({"bootstrap.servers": bus.bootstrap_servers})
        self._watch = _watch(bus.bootstrap_servers, "read_uncommitted")
        self._committed_watch = _watch(bus.bootstrap_servers, "read_committed")

    def detach_clients(self) -> None:
        self._watch.close()
        self._committed_watch.close()

    def topics_created(self) -> None:
        """The topics are new, and so is their id."""
        self._topic_id = self.bus.topic_id(EVENTS_BY_USER)
        self._logged: tuple[dict[int, int], int] = ({}, 0)

    def committed_records(self) -> int:
        """Records that the batcher's group has committed."""
        return sum(self._committed("batcher", BEHAVIOUR).values())

    def written_messages(self) -> int:
        """Messages that the batcher wrote, admitted and dead, committed or not."""
        first = EVENTS_BY_USER if self.replicas == 1 else ADMITTED
        return sum(self._ends(first)) + self._ends(BEHAVIOUR_DEAD)[0]

    def logged_rows(self) -> int:
        """Rows in the event log, duplicates included; read only when its offsets moved."""
        offsets = self._logged_offsets()
        if offsets != self._logged[0]:
            self._logged = (offsets, self.log.read(duplicates=True).height)
        return self._logged[1]

    def folded_events(self) -> int:
        """Events in the users' counts (only kinds that are counted)."""
        ids = [f"u{n}" for n in range(200)]
        columns = self.store.read("user", ids, 0).columns
        return int(sum(v.sum() for name, v in columns.items() if name.endswith("_count_all")))

    def _ends(self, topic: str, watch: Consumer | None = None) -> list[int]:
        count = 1 if topic == BEHAVIOUR_DEAD else self.partitions
        partitions = [TopicPartition(topic, p) for p in range(count)]
        return [(watch or self._watch).get_watermark_offsets(p, timeout=10)[1] for p in partitions]

    def dead(self) -> list[DeadLetter]:
        """Every dead letter; those of deleted topics first."""
        return [*self.old_dead_letters, *scan_dead_letters(self.bus)]

    def accounted_for(self) -> int:
        """Messages in the log or among the dead letters."""
        return self.logged_rows() + len(self.dead())

    # ---- proofs that a fault interrupted work

    def has_uncommitted_effect(self, role: str) -> bool:
        """Whether a batch with an effect is not committed, so that it is delivered again."""
        done = self._folded_offsets() if role == "features" else self._logged_offsets()
        committed = self._committed(role, EVENTS_BY_USER)
        return any(offset >= committed.get(p, 0) for p, offset in done.items() if offset >= 0)

    def _logged_offsets(self) -> dict[int, int]:
        return {p: self.log.last_offset(self._topic_id, p) for p in range(self.partitions)}

    def _folded_offsets(self) -> dict[int, int]:
        """Partition -> the last offset folded into any user's row."""
        rows = decode(self.store.stored_rows("user", [f"u{n}" for n in range(200)]))
        ours = rows.source_offset[
            rows.source_offset["topic_id"] == xxhash.xxh3_64_intdigest(self._topic_id.encode())
        ]
        return {int(p): int(ours["offset"][ours["partition"] == p].max())
                for p in np.unique(ours["partition"])}  # fmt: skip

    def _committed(self, role: str, topic: str, group: str = "") -> dict[int, int]:
        """`group`: the role's, where the store cannot be asked for it."""
        asked = ConsumerGroupTopicPartitions(group or self.group(role))
        future = self.admin.list_consumer_group_offsets([asked])[asked.group_id]
        commits = future.result(timeout=10).topic_partitions
        return {p.partition: p.offset for p in commits if p.topic == topic}

    def group(self, role: str) -> str:
        """The consumer group of an ingest loop, the log writer or the folds."""
        if role in _INPUT:
            return f"tidemill-{role}.{self.bus._group_suffix([_INPUT[role]])}"
        if role == "log-writer":
            return TopicIds(self.bus, [EVENTS_BY_USER]).consumer_group("facts")
        name = consumer_group("features", self.store.stored_rebuild_id() or 0)
        return TopicIds(self.bus, list(ENTITY_TOPIC.values())).consumer_group(name)

    def in_transaction(self) -> bool:
        """Whether the topics hold messages of no committed transaction."""
        topics = (ADMITTED, EVENTS_BY_USER)
        return any(self._ends(t) != self._ends(t, self._committed_watch) for t in topics)


def _watch(servers: str, isolation: str) -> Consumer:
    """A consumer for the ends of partitions."""
    return Consumer(
        {"bootstrap.servers": servers, "group.id": "chaos-watch", "isolation.level": isolation}
    )
