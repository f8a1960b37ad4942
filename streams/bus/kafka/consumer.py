"""librdkafka's consumer as a `streams.bus.contract.Consumer`.

Knows groups, polls, commits and the metadata beside them (`streams.bus.commit_metadata`). Does
not know how topics are created, their ids or ends (`streams.bus.kafka.bus`), nor what the bytes
mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as RdTopicPartition

from streams.bus.commit_metadata import CommitMetadata, TopicPartition, decode
from streams.bus.contract import BusError
from streams.bus.kafka.client import JOIN_TIMEOUT_S, LOG, REQUEST_TIMEOUT_S, to_bus_error
from streams.bus.polled import MessageGetters, Polled, Record, next_offsets

_LEAVE_TIMEOUT_S, _LEAVE_POLL_S = 2.0, 0.01  # for partitions to be given up before a close
_LEAVE_MESSAGES = 10_000  # fetched already, discarded in one call


class KafkaConsumer:
    def __init__(
        self,
        config: dict[str, Any],
        topics: Sequence[str],
        ends: Callable[[str], dict[int, tuple[int, int]]] | None = None,
    ) -> None:
        """`ends`: gives a topic's ends; a partition without a commit is then read from its end."""
        self.client: Any = RdConsumer(config)
        self._bootstrap = str(config["bootstrap.servers"])
        self._topic = topics[0] if len(topics) == 1 else None
        self._held: list[Any] = []
        self._assignment_version = 0
        self._ends = ends
        self.client.subscribe(
            list(topics),
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        before, (held, self._held) = self._assignment_version, (self._held, [])
        # `consume` waits for as many as it is asked for: wait for one, then take what is there.
        messages = held or self._consume(max_records, 0.0) or self._consume(1, timeout_s)
        if messages and len(messages) < max_records:
            messages = self._with_fetched(messages, max_records - len(messages))
        if list(map(Message.error, messages)).count(None) < len(messages):
            messages = [m for m in messages if is_record(m, self._bootstrap)]
        # After a rebalance amid the poll, records may be repeated in it: offsets do not ascend.
        return Polled(
            messages, _GETTERS, self._topic if self._assignment_version == before else None
        )

    def _with_fetched(self, messages: list[Any], count: int) -> list[Any]:
        """`messages` and at most `count` more that are fetched already.

        Records fetched before a rebalance are discarded; the new owner resumes at the committed
        offset. (Not with `ends`: without a commit the new owner would skip them.)
        """
        version = self._assignment_version
        more = self._consume(count, 0.0)
        resumes_at_commits = self._ends is None
        rebalanced = self._assignment_version != version
        return more if resumes_at_commits and rebalanced else messages + more

    def commit(self, records: Sequence[Record]) -> None:
        if not records:
            return
        try:
            done = self.client.commit(offsets=positions_of(records), asynchronous=False)
        except KafkaException as error:
            raise to_bus_error("commit offsets", error, self._bootstrap) from error
        refused = [at for at in done or [] if at.error is not None]
        if refused:
            raise BusError(f"{refused[0].topic}/{refused[0].partition}: {refused[0].error.str()}")

    def seek(self, topic: str, partition: int, offset: int) -> None:
        try:
            self.client.seek(RdTopicPartition(topic, partition, offset))
        except KafkaException as error:
            raise to_bus_error(f"seek in {topic}/{partition}", error, self._bootstrap) from error

    def lag(self) -> int:
        try:
            return sum(self._lag_of(at) for at in self.client.position(self.client.assignment()))
        except KafkaException as error:
            raise to_bus_error("measure the lag", error, self._bootstrap) from error

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset((at.topic, at.partition) for at in self.client.assignment())

    def committed(self) -> dict[TopicPartition, int]:
        return {(commit.topic, commit.partition): commit.offset for commit in self._commits()}

    def commit_metadata(self) -> dict[TopicPartition, CommitMetadata]:
        return {(c.topic, c.partition): decode(c.metadata) for c in self._commits()}

    def _commits(self) -> list[Any]:
        if not (assigned := self.client.assignment()):
            return []
        try:
            commits = self.client.committed(assigned, timeout=REQUEST_TIMEOUT_S)
        except KafkaException as error:
            raise to_bus_error("read commits", error, self._bootstrap) from error
        return [commit for commit in commits if commit.offset >= 0]

    def assignment_version(self) -> int:
        return self._assignment_version

    def close(self) -> None:
        """Leaves the group. Idempotent.

        A rebalance during librdkafka's close (after a session timeout, say) can make it wait for
        an answer that never comes (its issue 4884), and the binding holds the GIL meanwhile.
        Giving up all partitions before the close avoids that.
        """
        deadline = time.monotonic() + _LEAVE_TIMEOUT_S
        with suppress(KafkaException, RuntimeError):  # a BusError, or the client is closed
            self.client.unsubscribe()
            while self._consume(_LEAVE_MESSAGES, 0.0) or self.client.assignment():
                if time.monotonic() > deadline:
                    break
                time.sleep(_LEAVE_POLL_S)
        self.client.close()

    def await_assignment(self) -> None:
        """Returns when partitions are assigned and their starting offsets are fixed."""
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while self._assignment_version == 0:
            self._held += self._consume(1, 0.05)
            if time.monotonic() > deadline:
                raise BusError(
                    f"{self._bootstrap} assigned no partitions within {JOIN_TIMEOUT_S:.0f} s"
                )

    def _lag_of(self, position: Any) -> int:
        """0 before anything was fetched from the partition. Asking the broker instead would hold
        the loop up for as long as the broker is down."""
        high = self.client.get_watermark_offsets(position, cached=True)[1]
        return max(0, int(high) - int(position.offset)) if position.offset >= 0 else 0

    def _consume(self, count: int, timeout_s: float) -> list[Any]:
        try:
            return list(self.client.consume(count, timeout_s))
        except KafkaException as error:
            raise to_bus_error("read", error, self._bootstrap) from error

    def _on_assign(self, client: Any, assigned: list[Any]) -> None:
        if self._ends is not None:
            # Resolve the end to an offset now: librdkafka would do so some time later.
            ends = {topic: self._ends(topic) for topic in {at.topic for at in assigned}}
            client.assign(
                [self._start_at(client, a, ends[a.topic][a.partition][1]) for a in assigned]
            )
        self._assignment_version += 1

    def _start_at(self, client: Any, assigned: Any, end: int) -> Any:
        stored = client.committed([assigned], timeout=REQUEST_TIMEOUT_S)[0].offset
        offset = stored if stored >= 0 else end
        return RdTopicPartition(assigned.topic, assigned.partition, offset)

    def _on_revoke(self, _client: object, _revoked: object) -> None:
        self._assignment_version += 1


def record_of(message: Any) -> Record:
    # Not by Record(...): for tens of thousands of records, arguments would be half the cost.
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
_GETTERS = MessageGetters(
    _MESSAGE.topic,
    _MESSAGE.partition,
    _MESSAGE.offset,
    _MESSAGE.value,
    _MESSAGE.headers,
    record_of,
)


def is_record(message: Any, bootstrap: str) -> bool:
    """Whether this is a record. Logs errors that librdkafka retries by itself.

    Raises `BusError` for the others.
    """
    error = message.error()
    if error is None:
        return True
    if error.fatal() or error.code() == KafkaError._MAX_POLL_EXCEEDED:
        raise BusError(f"{bootstrap}: {error.str()}")
    if error.code() != KafkaError._PARTITION_EOF:
        LOG.warning("%s: %s", bootstrap, error.str())
    return False


def positions_of(records: Sequence[Record]) -> list[Any]:
    return [RdTopicPartition(t, p, o) for (t, p), o in next_offsets(records).items()]
