"""librdkafka's producer as a `streams.bus.contract.Producer`.

Knows delivery and transactions. Does not know how topics are created, their ids or ends
(`streams.bus.kafka.bus`), nor what the bytes mean.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as RdProducer
from confluent_kafka import TopicPartition as RdTopicPartition

from streams.bus.commit_metadata import CommitMetadata, TopicPartition, encode
from streams.bus.contract import (
    MAX_MESSAGE_BYTES,
    BusError,
    Consumed,
    Consumer,
    MessagesRejected,
    Outgoing,
)
from streams.bus.kafka.client import (
    JOIN_TIMEOUT_S,
    LOG,
    REQUEST_TIMEOUT_S,
    call_with_timeout,
    to_bus_error,
)
from streams.bus.kafka.consumer import KafkaConsumer

_GRACE_S = 2.0  # beyond a call's own limit
# The longest that a killed producer's open transaction blocks the readers of its topics.
_TRANSACTION_TIMEOUT_MS = 10_000
# Errors of one message that no retry cures; all others concern the broker.
_PERMANENT = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
    }
)


class KafkaProducer:
    """Writes in order, each message once. With a transactional id, `send` is a transaction."""

    def __init__(
        self, client: Mapping[str, Any], transactional_id: str | None, *, timeout_s: float = 30.0
    ) -> None:
        """`client`: what `client_config` returns."""
        config = dict(client) | {
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # the Java client's choice for the same key
            "linger.ms": 2,
            "batch.size": 1_000_000,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "queue.buffering.max.messages": 500_000,
            "delivery.timeout.ms": int(timeout_s * 1000),
        }
        self._transactional = transactional_id is not None
        self._bootstrap = str(config["bootstrap.servers"])
        # librdkafka checks its timeouts periodically: allow more than their values.
        limit_s = _TRANSACTION_TIMEOUT_MS / 1000 if transactional_id is not None else timeout_s
        self._flush_timeout_s = limit_s + REQUEST_TIMEOUT_S
        self._lock = threading.Lock()
        if transactional_id is not None:
            config["transactional.id"] = transactional_id
            config["transaction.timeout.ms"] = _TRANSACTION_TIMEOUT_MS
            config["delivery.timeout.ms"] = _TRANSACTION_TIMEOUT_MS
        self._producer: Any = RdProducer(config)
        if self._transactional:
            start = self._producer.init_transactions
            self._call("start as a transactional producer", start, JOIN_TIMEOUT_S)

    def send(
        self, messages: Sequence[Outgoing], *, consumed: Consumed | None = None
    ) -> Mapping[TopicPartition, CommitMetadata]:
        with self._lock:
            if self._transactional:
                return self._transact(messages, consumed)
            self._write(messages)
        if consumed is not None:
            consumed.consumer.commit(consumed.records)
        return {}

    def abort_open(self, targets: Sequence[TopicPartition], consumer: Consumer) -> None:
        with self._lock:
            if not self._transactional or not targets:
                return
            self._call("begin a transaction", self._producer.begin_transaction)
            self._write([Outgoing(topic, None, partition=p) for topic, p in targets])
            with suppress(
                BusError
            ):  # a rebalancing group refuses offsets, but is in the transaction
                self._commit_input(consumer, dict.fromkeys(consumer.assignment(), 0), {})
            abort = partial(
                call_with_timeout, REQUEST_TIMEOUT_S + _GRACE_S, self._producer.abort_transaction
            )
            self._call("abort an open transaction", abort, REQUEST_TIMEOUT_S)

    def close(self) -> None:
        """Waits for messages in flight. A closed producer must not be used again."""
        self._producer.flush(REQUEST_TIMEOUT_S)

    def _transact(
        self, messages: Sequence[Outgoing], consumed: Consumed | None
    ) -> Mapping[TopicPartition, CommitMetadata]:
        self._call("begin a transaction", self._producer.begin_transaction)
        metadata: Mapping[TopicPartition, CommitMetadata] = {}
        try:
            written = self._write(messages)
            if consumed is not None:
                metadata = consumed.metadata_after(written)
                self._commit_input(consumed.consumer, consumed.next_offsets(), metadata)
            self._call("commit", self._producer.commit_transaction, REQUEST_TIMEOUT_S)
        except BusError:
            self._abort()
            raise
        return metadata

    def _commit_input(
        self,
        consumer: Consumer,
        next_offsets: Mapping[TopicPartition, int],
        metadata: Mapping[TopicPartition, CommitMetadata],
    ) -> None:
        group = _kafka_client(consumer).consumer_group_metadata()
        offsets = [
            RdTopicPartition(*source, offset, encode(metadata.get(source, {})))
            for source, offset in next_offsets.items()
        ]
        # librdkafka exceeds its timeout while a group's coordinator is away (its #5456).
        send = self._producer.send_offsets_to_transaction
        self._call(
            "commit the input's offsets",
            partial(call_with_timeout, REQUEST_TIMEOUT_S + _GRACE_S, send),
            offsets,
            group,
            REQUEST_TIMEOUT_S,
        )

    def _write(self, messages: Sequence[Outgoing]) -> dict[TopicPartition, int]:
        """Returns the offset of the last message in each partition.

        Raises:
            MessagesRejected: the broker refuses some of them for good; the others are written.
            BusError: some were not written.
        """
        failures: dict[int, KafkaError] = {}
        written: dict[TopicPartition, int] = {}

        def delivered(index: int, error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failures[index] = error
            else:  # a partition's reports come in the order of its messages
                written[message.topic(), message.partition()] = message.offset()

        for index, message in enumerate(messages):
            if error := self._produce(message, partial(delivered, index)):
                failures[index] = error
        left = self._call("write", self._producer.flush, self._flush_timeout_s)
        if failures or left:
            raise self._write_error(failures, left)
        return written

    def _write_error(self, failures: Mapping[int, KafkaError], left: int) -> BusError:
        if not left and all(error.code() in _PERMANENT for error in failures.values()):
            return MessagesRejected({index: error.str() for index, error in failures.items()})
        why = next((e.str() for e in failures.values() if e.code() not in _PERMANENT), "")
        return BusError(
            f"{self._bootstrap} did not take {len(failures) or left} messages: "
            f"{why or 'it did not answer'}"
        )

    def _produce(self, message: Outgoing, delivered: Any) -> KafkaError | None:
        """Queues a message; the error if it can never be sent.

        Raises:
            BusError: the client does not work.
        """
        target = {} if message.partition is None else {"partition": message.partition}
        headers = list(message.headers.items())
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    headers=headers,
                    on_delivery=delivered,
                    **target,
                )
                return None
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if reason.code() in _PERMANENT:
                    return reason
                raise BusError(f"{message.topic!r} did not take a message: {error}") from error

    def _call(self, what: str, call: Any, *args: Any) -> Any:
        """`call(*args)`; Kafka's errors become a `BusError` that says `what` failed."""
        try:
            return call(*args)
        except TimeoutError as error:
            raise BusError(f"{self._bootstrap} did not answer: {what}") from error
        except (KafkaException, SystemError) as error:
            # A fatal error raised during delivery reports surfaces in the next of them, as a
            # SystemError with the KafkaException as its cause.
            cause = error.__cause__ if isinstance(error, SystemError) else error
            if not isinstance(cause, KafkaException):
                raise
            raise to_bus_error(what, cause, self._bootstrap) from error

    def _abort(self) -> None:
        """Best effort: a producer that cannot abort is fenced or dead, and its process ends."""
        limit_s = REQUEST_TIMEOUT_S + _GRACE_S
        try:
            call_with_timeout(limit_s, self._producer.abort_transaction, REQUEST_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            LOG.warning("could not abort a transaction: %r", error)


def _kafka_client(consumer: Consumer) -> Any:
    if not isinstance(consumer, KafkaConsumer):
        raise TypeError("a Kafka transaction takes the offsets of a Kafka consumer")
    return consumer.client
