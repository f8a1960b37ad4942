"""librdkafka's producer and consumer in the form that `streams.bus` asks for.

Knows delivery, transactions, groups and which errors end a process. Does not know topics'
creation, epochs or ends (`streams.kafka_bus`), nor what the bytes mean.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Producer as RdProducer

from streams.bus import BusError, Consumed, Fields, Outgoing, Polled, Record, next_offsets

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
ANSWER_S = 10.0  # how long one request to the broker may take before it counts as down
JOIN_S = 20.0
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

    def close(self) -> None:
        """Waits for what is under way; a writer that is closed must not be used again."""
        self._producer.flush(ANSWER_S)

    def _transact(self, messages: Sequence[Outgoing], consumed: Consumed | None) -> None:
        self._try("begin a transaction", self._producer.begin_transaction)
        try:
            self._write(messages)
            if consumed is not None:
                self._mark(consumed)
            self._try("commit", self._producer.commit_transaction, ANSWER_S)
        except BusError:
            self._abort()
            raise

    def _mark(self, consumed: Consumed) -> None:
        if not isinstance(consumed.consumer, KafkaConsumer):
            raise TypeError("a Kafka transaction takes the offsets of a Kafka consumer")
        reader = consumed.consumer.client
        # librdkafka waits past its time for a group's coordinator that went away (its #5456).
        self._try(
            "mark the input as done",
            partial(within, ANSWER_S + _GRACE_S, self._producer.send_offsets_to_transaction),
            positions_of(consumed.records),
            reader.consumer_group_metadata(),
            ANSWER_S,
        )

    def _write(self, messages: Sequence[Outgoing]) -> None:
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                failures.append(error)

        for message in messages:
            self._produce(message, delivered)
        left = self._try("write", self._producer.flush, self._patience_s)
        if failures or left:
            why = failures[0].str() if failures else "it did not answer"
            raise BusError(
                f"{self._bootstrap} did not take {len(failures) or left} messages: {why}"
            )

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
            _LOG.warning("could not abort a transaction: %r", error)


class KafkaConsumer:
    def __init__(
        self,
        config: dict[str, Any],
        topics: Sequence[str],
        ends: Callable[[str], dict[int, tuple[int, int]]] | None = None,
    ) -> None:
        """With `ends`, a partition without a commit is read from its end."""
        self.client: Any = RdConsumer(config)
        self._bootstrap = str(config["bootstrap.servers"])
        self._topic = topics[0] if len(topics) == 1 else None
        self._held: list[Any] = []
        self._generation = 0
        self._ends = ends
        self.client.subscribe(
            list(topics),
            on_assign=self._given,
            on_revoke=self._taken,
            on_lost=self._taken,
        )

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        before, (held, self._held) = self._generation, (self._held, [])
        # `consume` waits for all it was asked for: so wait for one, then take what is there.
        messages = held or self._consume(max_records, 0.0) or self._consume(1, timeout_s)
        if messages and len(messages) < max_records:
            messages += self._consume(max_records - len(messages), 0.0)
        if list(map(Message.error, messages)).count(None) < len(messages):
            messages = [m for m in messages if is_record(m, self._bootstrap)]
        # Whoever is given a partition again may be given records again, in the same poll.
        return Polled(messages, _FIELDS, self._topic if self._generation == before else None)

    def commit(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            done = self.client.commit(offsets=positions_of(records), asynchronous=False)
        except KafkaException as error:
            raise went_down("commit offsets", error, self._bootstrap) from error
        refused = [place for place in done or [] if place.error is not None]
        if refused:
            raise BusError(f"{refused[0].topic}/{refused[0].partition}: {refused[0].error.str()}")

    def seek(self, topic: str, partition: int, offset: int) -> None:
        try:
            self.client.seek(TopicPartition(topic, partition, offset))
        except KafkaException as error:
            raise went_down(f"seek in {topic}/{partition}", error, self._bootstrap) from error

    def lag(self) -> int:
        return sum(self._lag_of(place) for place in self.client.position(self.client.assignment()))

    def assignment(self) -> frozenset[tuple[str, int]]:
        return frozenset((place.topic, place.partition) for place in self.client.assignment())

    def committed(self) -> dict[tuple[str, int], int]:
        if not (assigned := self.client.assignment()):
            return {}
        try:
            places = self.client.committed(assigned, timeout=ANSWER_S)
        except KafkaException as error:
            raise went_down("read commits", error, self._bootstrap) from error
        return {
            (place.topic, place.partition): place.offset for place in places if place.offset >= 0
        }

    def generation(self) -> int:
        return self._generation

    def close(self) -> None:
        self.client.close()

    def await_assignment(self) -> None:
        """Returns when partitions are assigned and their starting offsets are fixed."""
        deadline = time.monotonic() + JOIN_S
        while self._generation == 0:
            self._held += self._consume(1, 0.05)
            if time.monotonic() > deadline:
                raise BusError(f"{self._bootstrap} gave no partitions within {JOIN_S:.0f} s")

    def _lag_of(self, place: Any) -> int:
        low, asked = self.client.get_watermark_offsets(place, timeout=ANSWER_S)
        # What the last fetch said is fresher than the embedded broker's answer, and may be absent.
        high = max(asked, self.client.get_watermark_offsets(place, cached=True)[1])
        at = place.offset
        if at < 0:
            stored = self.client.committed([place], timeout=ANSWER_S)[0].offset
            at = stored if stored >= 0 else low
        return int(max(0, high - at))

    def _consume(self, count: int, timeout_s: float) -> list[Any]:
        try:
            return list(self.client.consume(count, timeout_s))
        except KafkaException as error:
            raise went_down("read", error, self._bootstrap) from error

    def _given(self, client: Any, places: list[Any]) -> None:
        if self._ends is not None:
            # "The end" becomes an offset here: librdkafka would find it some time later.
            ends = {topic: self._ends(topic) for topic in {place.topic for place in places}}
            client.assign([self._begin(client, p, ends[p.topic][p.partition][1]) for p in places])
        self._generation += 1

    def _begin(self, client: Any, place: Any, end: int) -> Any:
        stored = client.committed([place], timeout=ANSWER_S)[0].offset
        return TopicPartition(place.topic, place.partition, stored if stored >= 0 else end)

    def _taken(self, _client: object, _places: object) -> None:
        self._generation += 1


def client_config(bootstrap_servers: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap_servers,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "logger": _LOG,
    }


def record_of(message: Any) -> Record:
    # Not by Record(...): a loop may look at tens of thousands, and arguments would be half the cost.
    headers = message.headers()
    fields = (
        message.topic(),
        message.partition(),
        message.offset(),
        message.key(),
        message.value(),
        tuple(headers) if headers else (),
        message.timestamp()[1],
    )
    return tuple.__new__(Record, fields)


_MESSAGE: Any = Message
_FIELDS = Fields(
    _MESSAGE.topic,
    _MESSAGE.partition,
    _MESSAGE.offset,
    _MESSAGE.value,
    _MESSAGE.headers,
    record_of,
)


def is_record(message: Any, bootstrap: str) -> bool:
    """Whether this is a record. Errors that librdkafka works on by itself are only logged."""
    error = message.error()
    if error is None:
        return True
    if error.fatal() or error.code() == KafkaError._MAX_POLL_EXCEEDED:
        raise BusError(f"{bootstrap}: {error.str()}")
    if error.code() != KafkaError._PARTITION_EOF:
        _LOG.warning("%s: %s", bootstrap, error.str())
    return False


def positions_of(records: Sequence[Record]) -> list[Any]:
    return [TopicPartition(t, p, o) for (t, p), o in next_offsets(records).items()]


def went_down(what: str, error: KafkaException, bootstrap: str) -> BusError:
    reason = error.args[0]
    return BusError(f"could not {what} at {bootstrap}: {reason.str()} ({reason.name()})")


def within(seconds: float, call: Callable[..., T], *args: Any) -> T:
    """`call(*args)`, in a thread that is left behind when the call does not come back.

    Raises:
        TimeoutError: it did not within `seconds`.
    """
    came: Future[T] = Future()

    def work() -> None:
        try:
            came.set_result(call(*args))
        except BaseException as error:
            came.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return came.result(seconds)
