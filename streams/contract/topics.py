"""Topic names, partition counts and the hash that assigns an entity to a partition.

Knows names and numbers. Does not know how to create a topic (`streams.bus.contract`).
"""

from __future__ import annotations

from dataclasses import dataclass

import xxhash

BEHAVIOUR = "behaviour"  # JSON, or Protobuf by header; any producer, any key
BEHAVIOUR_DEAD = "behaviour.dead"  # what admission refused: original bytes, cause and origin
CATALOGUE = "catalogue"  # JSON, key video_id: items added, changed, taken down
ADMITTED = "events.admitted"  # Arrow-IPC by user: validated, duplicates not decided yet
EVENTS_BY_USER = "events.by_user"  # Arrow-IPC by user: the admitted truth, duplicates marked
EVENTS_BY_VIDEO = "events.by_video"  # Arrow-IPC by video, without duplicates
EVENTS_BY_AUTHOR = "events.by_author"
EVENTS_BY_QUERY = "events.by_query"
FEEDBACK = "feedback"  # JSON upserts by impression, with a revision
ERASURES = "erasures"  # JSON {user_id, at_ms}: users to forget, key user_id
REQUESTS = "recommendation.requests"
RESPONSES = "recommendation.responses"
MODELS_PUBLISHED = "models.published"  # JSON, one per release that went live

# Entity -> the topic that carries its events in one ordered partition per id.
ENTITY_TOPIC: dict[str, str] = {
    "user": EVENTS_BY_USER,
    "video": EVENTS_BY_VIDEO,
    "author": EVENTS_BY_AUTHOR,
    "query": EVENTS_BY_QUERY,
}


DAY_MS = 86_400_000
KEPT_MS = 7 * DAY_MS  # what users did; the log holds it from then on, so this is for outages
SEGMENT_MS = DAY_MS  # a broker drops whole segments, so a record may stay this much longer
ERASED_WITHIN_MS = KEPT_MS + SEGMENT_MS  # an erased user is gone from every topic by then
FOREVER = -1


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it is to be made. One that exists keeps what its broker's owner has set."""

    name: str
    partitions: int
    compacted: bool = False
    kept_ms: int | None = None  # None: as the broker does; FOREVER: without end

    def config(self) -> dict[str, str]:
        """The settings that differ from the broker's own, under Kafka's names."""
        config = {"cleanup.policy": "compact"} if self.compacted else {}
        if self.kept_ms is not None:
            config["retention.ms"] = str(self.kept_ms)
            if self.kept_ms != FOREVER:
                config["segment.ms"] = str(min(self.kept_ms, SEGMENT_MS))
        return config


def topic_specs(partitions: int) -> list[TopicSpec]:
    """Every topic of a stack whose entity topics have `partitions` partitions.

    What names a user goes after a while, since a broker cannot erase one user's records.
    Whom to forget and what there is to show is kept.
    """
    wide = [BEHAVIOUR, ADMITTED, *ENTITY_TOPIC.values(), FEEDBACK]
    narrow = [BEHAVIOUR_DEAD, REQUESTS, RESPONSES]
    kept = [CATALOGUE, ERASURES, MODELS_PUBLISHED]
    return [
        *(TopicSpec(name, partitions, kept_ms=KEPT_MS) for name in wide),
        *(TopicSpec(name, 1, kept_ms=KEPT_MS) for name in narrow),
        *(TopicSpec(name, 1, kept_ms=FOREVER) for name in kept),
    ]


def entity_hash(entity_id: str) -> int:
    """xxh3-64 of the id's UTF-8 bytes, seed 0. Part of the wire contract: never change it."""
    return xxhash.xxh3_64_intdigest(entity_id.encode())


def partition_of(entity_id: str, partitions: int) -> int:
    """The partition that owns an entity, whatever client wrote the message."""
    return entity_hash(entity_id) % partitions
