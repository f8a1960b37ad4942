"""librdkafka's producer in the form that `streams.bus.contract` asks for.

Knows delivery and transactions. Does not know topics' creation, epochs or ends
(`streams.bus.kafka.bus`), nor what the bytes mean.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka import Producer as RdProducer

from streams.bus.commit_metadata import Target, Trail, encode
from streams.bus.contract import BusError, Consumed, Consumer, Outgoing, next_offsets
from streams.bus.kafka.client import ANSWER_S, JOIN_S, LOG, client_config, went_down, within
from streams.bus.kafka.consumer import KafkaConsumer

_GRACE_S = 2.0  # beyond a call's own limit
# A transaction left behind by a killed writer holds its readers back this long at most.
_TRANSACTION_MS = 10_000


class KafkaProducer:
    """Writes in order, each message once. With a transactional id, `send` is a transaction."""

    def __init__(
        self, bootstrap_servers: str, transactional_id: str | None, *, timeout_s: float = 30.0
    ) -> None:
        config = client_config(bootstrap_servers) | {
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # what Java clients choose for the same key
            "linger.ms": 2,
            "batch.size": 1_000_000,
            "message.max.bytes": 1_000_000,
            "queue.buffering.max.messages": 500_000,
            "delivery.timeout.ms": int(timeout_s * 1000),
        }
        self._transactional = transactional_id is not None
        self._bootstrap = bootstrap_servers
        # librdkafka looks at its time-outs now and then: a little longer than they say.
        limit_s = _TRANSACTION_MS / 1000 if transactional_id is not None else timeout_s
        self._patience_s = limit_s + ANSWER_S
        self._lock = threading.Lock()
        if transactional_id is not None:
            config["transactional.id"] = transactional_id
            config["transaction.timeout.ms"] = _TRANSACTION_MS
            config["delivery.timeout.ms"] = _TRANSACTION_MS
        self._producer: Any = RdProducer(config)
        if self._transactional:
            self._try("begin as a transactional writer", self._producer.init_transactions, JOIN_S)

    def send(self, messages: Sequence[Outgoing], *, consumed: Consumed | None = None) -> None:
        with self._lock:
            if self._transactional:
                self._transact(messages, consumed)
                return
            self._write(messages)
        if consumed is not None:
            consumed.consumer.commit(consumed.records)

    def settle(self, targets: Sequence[Target], consumer: Consumer) -> None:
        with self._lock:
            if not self._transactional or not targets:
                return
            self._try("begin a transaction", self._producer.begin_transaction)
            self._write([Outgoing(topic, None, partition=p) for topic, p in targets])
            with suppress(BusError):  # a group that is moving takes no offsets, but was named
                self._mark(consumer, dict.fromkeys(consumer.assignment(), 0), {})
            abort = partial(within, ANSWER_S + _GRACE_S, self._producer.abort_transaction)
            self._try("abort what was left open", abort, ANSWER_S)

    def close(self) -> None:
        """Waits for what is under way; a writer that is closed must not be used again."""
        self._producer.flush(ANSWER_S)

    def _transact(self, messages: Sequence[Outgoing], consumed: Consumed | None) -> None:
        self._try("begin a transaction", self._producer.begin_transaction)
        trails: dict[Target, Trail] = {}
        try:
            written = self._write(messages)
            if consumed is not None:
                trails = _reader(consumed.consumer).trails_after(consumed, written)
                done = consumed.until or next_offsets(consumed.records)
                self._mark(consumed.consumer, done, trails)
            self._try("commit", self._producer.commit_transaction, ANSWER_S)
        except BusError:
            self._abort()
            raise
        if consumed is not None:
            _reader(consumed.consumer).keep(trails)

    def _mark(
        self, consumer: Consumer, done: Mapping[Target, int], trails: Mapping[Target, Trail]
    ) -> None:
        """`done`: the offset after what was worked off, by input partition."""
        reader = _reader(consumer).client
        positions = [
            TopicPartition(*place, offset, encode(trails.get(place, {})))
            for place, offset in done.items()
        ]
        # librdkafka waits past its time for a group's coordinator that went away (its #5456).
        self._try(
            "mark the input as done",
            partial(within, ANSWER_S + _GRACE_S, self._producer.send_offsets_to_transaction),
            positions,
            reader.consumer_group_metadata(),
            ANSWER_S,
        )

    def _write(self, messages: Sequence[Outgoing]) -> dict[Target, int]:
        """Where the last message of each partition lies now."""
        failures: list[KafkaError] = []
        written: dict[Target, int] = {}

        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                failures.append(error)
            else:  # a partition's reports come in the order of its messages
                written[message.topic(), message.partition()] = message.offset()

        for message in messages:
            self._produce(message, delivered)
        left = self._try("write", self._producer.flush, self._patience_s)
        if failures or left:
            why = failures[0].str() if failures else "it did not answer"
            raise BusError(
                f"{self._bootstrap} did not take {len(failures) or left} messages: {why}"
            )
        return written

    def _produce(self, message: Outgoing, delivered: Any) -> None:
        place = {} if message.partition is None else {"partition": message.partition}
        headers = list(message.headers.items())
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    headers=headers,
                    on_delivery=delivered,
                    **place,
                )
                return
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                raise BusError(f"{message.topic!r} did not take a message: {error}") from error

    def _try(self, what: str, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except TimeoutError as error:
            raise BusError(f"{self._bootstrap} did not answer: {what}") from error
        except (KafkaException, SystemError) as error:
            # A fatal error is raised amid the delivery reports: the next of them meets it, and
            # Python says so by a SystemError.
            cause = error.__cause__ if isinstance(error, SystemError) else error
            if not isinstance(cause, KafkaException):
                raise
            raise went_down(what, cause, self._bootstrap) from error

    def _abort(self) -> None:
        """Best effort: a writer that cannot abort is fenced or dead, and its process ends."""
        try:
            within(ANSWER_S + _GRACE_S, self._producer.abort_transaction, ANSWER_S)
        except (KafkaException, TimeoutError) as error:
            LOG.warning("could not abort a transaction: %r", error)


def _reader(consumer: Consumer) -> KafkaConsumer:
    if not isinstance(consumer, KafkaConsumer):
        raise TypeError("a Kafka transaction takes the offsets of a Kafka consumer")
    return consumer
