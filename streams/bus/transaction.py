"""The transactions of one loop: messages, the offsets of their input, and commit metadata.

Knows which metadata the loop's last commits carried. Does not know what the messages hold, nor
how a client writes them (`streams.bus.kafka.producer`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from streams.bus.commit_metadata import CommitMetadata, TopicPartition
from streams.bus.contract import Consumed, Consumer, Outgoing, Producer
from streams.bus.polled import Record


class InputTransactions:
    """Writes messages and commits the input they were made of. Not thread-safe.

    With a transactional producer both happen in one transaction, and the commit carries metadata
    about the messages. With any other, the offsets are committed after the messages.
    """

    def __init__(self, producer: Producer, consumer: Consumer) -> None:
        self._producer, self._consumer = producer, consumer
        self._metadata: dict[TopicPartition, CommitMetadata] = {}

    def send(
        self,
        messages: Sequence[Outgoing],
        records: Sequence[Record],
        until: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        """Writes `messages` and marks `records` as processed, or the offsets before `until`.

        Raises:
            BusError: the transaction was aborted; nothing has changed.
        """
        consumed = Consumed(self._consumer, records, until, self._metadata)
        self._metadata |= self._producer.send(messages, consumed=consumed)

    def load_metadata(self) -> dict[TopicPartition, CommitMetadata]:
        """Reads the commit metadata of every assigned partition; call it after a rebalance."""
        self._metadata = self._consumer.commit_metadata()
        return dict(self._metadata)

    def drop_targets(self, source: TopicPartition, targets: Collection[TopicPartition]) -> None:
        """The next commit of the input partition `source` no longer names `targets`."""
        kept = self._metadata.get(source, {})
        self._metadata[source] = {t: last for t, last in kept.items() if t not in targets}

    def abort_open(self, targets: Sequence[TopicPartition]) -> None:
        """Aborts what an earlier process of this transactional id left open in `targets`."""
        self._producer.abort_open(targets, self._consumer)
