"""What the topics have said up to some offset, so that a reader goes on from there.

Knows the state that topics make and how far it goes. Does not know how topics are read
(`serving.console.live`). A process that answers beside others starts from a copy of it instead of
reading the topics from their start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from streams.bus.commit_metadata import TopicPartition


def no_totals() -> dict[str, int]:
    return {"events": 0, "late": 0, "duplicates": 0, "dead": 0}


@dataclass
class Reached:
    """State as of `next_offsets`. Written by one thread.

    topic_ids: of the topics that were read; offsets of another id mean nothing.
    next_offsets: the first offset that was not read, by topic and partition.
    """

    catalogue: LiveCatalogue
    activity: Activity = field(default_factory=Activity)
    totals: dict[str, int] = field(default_factory=no_totals)
    topic_ids: dict[str, str] = field(default_factory=dict)
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)

    def offsets_of(
        self, topics: Collection[str], topic_ids: Mapping[str, str]
    ) -> dict[TopicPartition, int]:
        """Where to read on in these topics; {} if one was not read or was recreated since."""
        if any(self.topic_ids.get(topic) != topic_ids[topic] for topic in topics):
            return {}
        return {at: offset for at, offset in self.next_offsets.items() if at[0] in topics}
