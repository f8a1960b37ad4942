"""Topic names, partition counts and the hash that assigns an entity to a partition.

Knows names and numbers. Does not know how to create a topic (`streams.bus.contract`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from streams.contract.clock import DAY_MS

BEHAVIOUR = "behaviour"  # JSON, or Protobuf by header; any producer, any key
BEHAVIOUR_DEAD = "behaviour.dead"  # rejected records of all inputs: bytes, cause and origin
DEAD_REPLAYED = "behaviour.dead.replayed"  # what of it was sent again, as sha256
CATALOGUE = "catalogue"  # JSON, key video_id: items added, changed, taken down
ADMITTED = "events.admitted"  # Arrow-IPC by user: validated, duplicates not marked yet
EVENTS_BY_USER = "events.by_user"  # Arrow-IPC by user: all admitted events, duplicates marked
EVENTS_BY_ITEM = "events.by_video"  # Arrow-IPC by item, without duplicates
EVENTS_BY_AUTHOR = "events.by_author"
EVENTS_BY_QUERY = "events.by_query"
FEEDBACK = "feedback"  # JSON upserts by impression, with a revision
ERASURES = "erasures"  # JSON {user_id, at_ms}, key user_id
REQUESTS = "recommendation.requests"
RESPONSES = "recommendation.responses"
MODELS_PUBLISHED = "models.published"  # JSON, one per release that went live

# Entity -> the topic that carries its events in one ordered partition per id.
ENTITY_TOPIC: dict[str, str] = {
    "user": EVENTS_BY_USER,
    "video": EVENTS_BY_ITEM,
    "author": EVENTS_BY_AUTHOR,
    "query": EVENTS_BY_QUERY,
}


@dataclass(frozen=True)
class OwnEntity:
    """An entity of an owner's: the events of these kinds, one topic more, by this event column."""

    name: str
    column: str
    kinds: tuple[str, ...]


def entity_topic(entity: str) -> str:
    """The topic of an entity, shipped or an owner's."""
    return ENTITY_TOPIC.get(entity) or f"events.by_{entity}"


RETENTION_MS = 7 * DAY_MS  # of user data: bridges outages, since the log keeps it for good
SEGMENT_MS = DAY_MS  # a broker drops whole segments, so a record may stay this much longer
ERASED_WITHIN_MS = RETENTION_MS + SEGMENT_MS  # after this, no topic holds an erased user's data
FOREVER = -1


@dataclass(frozen=True)
class TopicSpec:
    """A topic to create. An existing topic keeps its settings."""

    name: str
    partitions: int
    compacted: bool = False
    retention_ms: int | None = None  # None: the broker's default; FOREVER: unlimited

    def config(self) -> dict[str, str]:
        """The settings that differ from the broker's defaults, under Kafka's names."""
        config = {"cleanup.policy": "compact"} if self.compacted else {}
        if self.retention_ms is not None:
            config["retention.ms"] = str(self.retention_ms)
            if self.retention_ms == FOREVER:
                config["retention.bytes"] = str(FOREVER)  # a broker's default may have a limit
            else:
                config["segment.ms"] = str(min(self.retention_ms, SEGMENT_MS))
        return config


def topic_specs(partitions: int, own: Iterable[str] = ()) -> list[TopicSpec]:
    """Every topic of a stack whose entity topics have `partitions` partitions.

    own: entities of the owner's, one topic each.

    Topics with user data have a retention time, since a broker cannot erase one user's records.
    The catalogue, erasures and releases are kept forever.
    """
    wide = [BEHAVIOUR, ADMITTED, *ENTITY_TOPIC.values(), *map(entity_topic, own), FEEDBACK]
    narrow = [BEHAVIOUR_DEAD, DEAD_REPLAYED, REQUESTS, RESPONSES]
    kept = [CATALOGUE, ERASURES, MODELS_PUBLISHED]
    return [
        *(TopicSpec(name, partitions, retention_ms=RETENTION_MS) for name in wide),
        *(TopicSpec(name, 1, retention_ms=RETENTION_MS) for name in narrow),
        *(TopicSpec(name, 1, retention_ms=FOREVER) for name in kept),
    ]


def entity_hash(entity_id: str) -> int:
    """xxh3-64 of the id's UTF-8 bytes, seed 0. Part of the wire contract: never change it."""
    return xxhash.xxh3_64_intdigest(entity_id.encode())


def partition_of(entity_id: str, partitions: int) -> int:
    """The partition of an entity, whichever client writes the message."""
    return entity_hash(entity_id) % partitions
