"""The bus on anything that speaks Kafka's protocol, through librdkafka.

Knows topics, their ids and their ends. Does not know what the bytes mean, nor how a message is
written or read (`streams.bus.kafka.producer`, `streams.bus.kafka.consumer`). Every consumer
reads committed records only and moves its offsets only by `commit`, or inside a producer's
transaction. On a broker without real transactions (the embedded one) a plain idempotent
producer writes first and commits the offsets afterwards.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import IsolationLevel, KafkaError, KafkaException, admin
from confluent_kafka import TopicCollection as Topics
from confluent_kafka import TopicPartition as RdTopicPartition

from streams.bus.contract import BusError, partition_mismatch
from streams.bus.kafka.client import (
    JOIN_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    client_config,
    to_bus_error,
)
from streams.bus.kafka.consumer import KafkaConsumer, record_of
from streams.bus.kafka.login import PLAIN_TEXT, KafkaLogin
from streams.bus.kafka.producer import KafkaProducer
from streams.bus.polled import Record
from streams.contract.topics import TopicSpec

# The untyped parts of librdkafka's Python client are Any here.
_ADMIN: Any = admin
FETCH_MIN_BYTES = 1_000_000  # a response of this size is sent at once
_ISOLATION = (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
# A response that waited for more records would delay the end-of-partition event.
_TO_THE_END = {"enable.partition.eof": True, "fetch.wait.max.ms": 5}
_EARLIEST, _LATEST = _ADMIN.OffsetSpec.earliest(), _ADMIN.OffsetSpec.latest()


class KafkaBus:
    """Implements `streams.bus.contract.Bus` on `bootstrap_servers`. Safe to share between threads.

    `session_timeout_ms`: how long a silent member keeps its partitions; brokers bound it
    (Apache Kafka: at least 6 s). The embedded broker answers a join after half of it.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        session_timeout_ms: int = 6_000,
        login: KafkaLogin = PLAIN_TEXT,
    ) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._login = login
        self._session_ms = session_timeout_ms
        self._admin_client: Any = None
        self._lock = threading.Lock()

    def ensure_topics(self, specs: Sequence[TopicSpec]) -> None:
        known = self._partition_counts()
        for spec in specs:
            if spec.name in known and known[spec.name] != spec.partitions:
                raise BusError(partition_mismatch(spec, known[spec.name]))
        missing = [_new_topic(spec) for spec in specs if spec.name not in known]
        if not missing:
            return
        for name, future in self._admin().create_topics(missing).items():
            _result(f"create topic {name}", future, tolerate=KafkaError.TOPIC_ALREADY_EXISTS)
        self._await_topics({spec.name for spec in specs})

    def topic_id(self, topic: str) -> str:
        return self.topic_ids([topic])[topic]

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        futures = self._admin().describe_topics(Topics(list(topics)))
        return {topic: _topic_id(topic, futures[topic]) for topic in topics}

    def partitions(self, topic: str) -> int:
        if (count := self._partition_counts().get(topic)) is None:
            raise BusError(f"topic {topic!r} does not exist: call ensure_topics first")
        return count

    def ends(self, topic: str, *, uncommitted: bool = False) -> dict[int, tuple[int, int]]:
        count = self.partitions(topic)
        firsts = self._offsets(topic, count, _EARLIEST)
        lasts = self._read_ends(topic, self._offsets(topic, count, _LATEST))
        if uncommitted:
            high = self._offsets(topic, count, _LATEST, uncommitted=True)
            lasts = {p: max(last, high[p]) for p, last in lasts.items()}
        return {p: (firsts[p], lasts[p]) for p in range(count)}

    def scan(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        if start >= stop:
            return
        reader = RdConsumer(self._consumer_config("tidemill-scan") | _TO_THE_END)
        try:
            reader.assign([RdTopicPartition(topic, partition, start)])
            yield from _read_until(reader, stop)
        finally:
            reader.close()

    def producer(
        self, transactional_id: str | None = None, *, timeout_s: float = 30.0
    ) -> KafkaProducer:
        config = client_config(self.bootstrap_servers, self._login)
        return KafkaProducer(config, transactional_id, timeout_s=timeout_s)

    def consumer(
        self,
        topics: Sequence[str],
        group: str,
        *,
        from_start: bool = True,
        fetch_max_wait_s: float = 0.0,
    ) -> KafkaConsumer:
        known = self._partition_counts()
        absent = [topic for topic in topics if topic not in known]
        if absent:
            raise BusError(f"topic {absent[0]!r} does not exist: call ensure_topics first")
        config = self._consumer_config(f"{group}.{self._group_suffix(topics)}")
        config |= _fetch_wait_config(fetch_max_wait_s)
        consumer = KafkaConsumer(config, topics, None if from_start else self.ends)
        if not from_start:
            consumer.await_assignment()
        return consumer

    def _group_suffix(self, topics: Sequence[str]) -> str:
        """A hash of the topics' ids. With it in a group's name, no commit and no member of the
        group outlives a recreated topic."""
        ids = self.topic_ids(topics)
        text = ",".join(ids[topic] for topic in sorted(topics))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def healthy(self, timeout_s: float = 1.0) -> bool:
        try:
            self._admin().list_topics(timeout=timeout_s)
        except (KafkaException, BusError):
            return False
        return True

    def _consumer_config(self, group: str) -> dict[str, Any]:
        return client_config(self.bootstrap_servers, self._login) | {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "session.timeout.ms": self._session_ms,
            "heartbeat.interval.ms": self._session_ms // 6,
            "fetch.wait.max.ms": 100,
            "fetch.queue.backoff.ms": 5,
            "queued.max.messages.kbytes": 32_768,
            "allow.auto.create.topics": False,
        }

    def _admin(self) -> Any:
        with self._lock:
            if self._admin_client is None:
                config = client_config(self.bootstrap_servers, self._login)
                config["socket.timeout.ms"] = 10_000
                self._admin_client = _ADMIN.AdminClient(config)
            return self._admin_client

    def _partition_counts(self) -> dict[str, int]:
        try:
            listed = self._admin().list_topics(timeout=REQUEST_TIMEOUT_S).topics
        except KafkaException as error:
            raise to_bus_error("list topics", error, self.bootstrap_servers) from error
        return {name: len(t.partitions) for name, t in listed.items() if t.error is None}

    def _await_topics(self, names: set[str]) -> None:
        """Waits for the metadata of new topics: until then requests may not know them."""
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while names - self._partition_counts().keys():
            if time.monotonic() > deadline:
                raise BusError(f"the broker does not list {sorted(names)}: see its log")
            time.sleep(0.05)

    def _read_ends(self, topic: str, at_least: Mapping[int, int]) -> dict[int, int]:
        """Reads on to the end of each partition.

        The embedded broker answers with the *first* offset of the last batch plus one, so its
        answer is only a starting point.
        """
        reader = RdConsumer(self._consumer_config("tidemill-ends") | _TO_THE_END)
        try:
            reader.assign([RdTopicPartition(topic, p, at) for p, at in at_least.items()])
            return _read_to_ends(reader, len(at_least))
        finally:
            reader.close()

    def _offsets(
        self, topic: str, count: int, spec: Any, *, uncommitted: bool = False
    ) -> dict[int, int]:
        """Retries while a new topic has no leader yet."""
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                return self._ask_offsets(topic, count, spec, _ISOLATION[uncommitted])
            except BusError as error:
                if "leader" not in str(error).lower() or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _ask_offsets(
        self, topic: str, count: int, spec: Any, isolation: IsolationLevel
    ) -> dict[int, int]:
        asked = {RdTopicPartition(topic, p): spec for p in range(count)}
        futures = self._admin().list_offsets(
            asked, isolation_level=isolation, request_timeout=REQUEST_TIMEOUT_S
        )
        return {
            at.partition: int(_result(f"list offsets of {topic}", future).offset)
            for at, future in futures.items()
        }


def _topic_id(topic: str, described: Any) -> str:
    what = f"describe topic {topic!r} (call ensure_topics first)"
    return str(_result(what, described).topic_id)


def _fetch_wait_config(fetch_max_wait_s: float) -> dict[str, Any]:
    if not fetch_max_wait_s:
        return {}
    return {"fetch.min.bytes": FETCH_MIN_BYTES, "fetch.wait.max.ms": int(fetch_max_wait_s * 1_000)}


def _new_topic(spec: TopicSpec) -> Any:
    return _ADMIN.NewTopic(spec.name, spec.partitions, config=spec.config())


def _read_to_ends(reader: Any, count: int) -> dict[int, int]:
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    ends: dict[int, int] = {}
    while len(ends) < count:
        for message in _consume_available(reader):
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                ends[message.partition()] = int(message.offset())
        if time.monotonic() > deadline:
            raise BusError(f"the broker did not report the ends of {count} partitions: see its log")
    return ends


def _consume_available(reader: Any) -> list[Any]:
    """The messages at hand, or the next one: `consume` waits for as many as it is asked for."""
    return list(reader.consume(1_000, 0.0) or reader.consume(1, 0.05))


def _read_until(reader: Any, stop: int) -> Iterator[Record]:
    last_message = time.monotonic()
    while True:
        for message in _consume_available(reader):
            last_message = time.monotonic()
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                return
            if error is None and message.offset() < stop:
                yield record_of(message)
            if error is None and message.offset() >= stop - 1:
                return
        if time.monotonic() - last_message > JOIN_TIMEOUT_S:
            raise BusError(f"the broker stopped answering while reading up to offset {stop}")


def _result(what: str, future: Any, tolerate: int | None = None) -> Any:
    try:
        return future.result(timeout=REQUEST_TIMEOUT_S)
    except KafkaException as error:
        if tolerate is not None and error.args[0].code() == tolerate:
            return None
        raise BusError(f"could not {what}: {error.args[0].str()}") from error
