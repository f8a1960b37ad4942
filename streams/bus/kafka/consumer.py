"""librdkafka's consumer in the form that `streams.bus.contract` asks for.

Knows groups, polls and commits, and what lies beside a commit (`streams.bus.commit_metadata`). Does not
know topics' creation, epochs or ends (`streams.bus.kafka.bus`), nor what the bytes mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer as RdConsumer
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from streams.bus.commit_metadata import Target, Trail, after, decode
from streams.bus.contract import (
    BusError,
    Consumed,
    Fields,
    Polled,
    Record,
    first_offsets,
    next_offsets,
)
from streams.bus.kafka.client import ANSWER_S, JOIN_S, LOG, went_down

_LEAVE_S, _LOOK_S = 2.0, 0.01  # how long partitions may take to go before a close
_LEFT_MESSAGES = 10_000  # that were fetched already, taken at once


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
        self._trails: dict[Target, Trail] = {}
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
            messages = self._and_behind(messages, max_records - len(messages))
        if list(map(Message.error, messages)).count(None) < len(messages):
            messages = [m for m in messages if is_record(m, self._bootstrap)]
        # Whoever is given a partition again may be given records again, in the same poll.
        return Polled(messages, _FIELDS, self._topic if self._generation == before else None)

    def _and_behind(self, messages: list[Any], count: int) -> list[Any]:
        """These and at most `count` that are there behind them. Where partitions move in between,
        these are left to whoever is given them: he begins at their commits."""
        generation = self._generation
        behind = self._consume(count, 0.0)
        begins_at_commits = self._ends is None
        return behind if begins_at_commits and self._generation != generation else messages + behind

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
        return {(place.topic, place.partition): place.offset for place in self._commits()}

    def trails(self) -> dict[Target, Trail]:
        commits = self._commits()
        self._trails = {(c.topic, c.partition): decode(c.metadata) for c in commits}
        return dict(self._trails)

    def trails_after(
        self, consumed: Consumed, written: Mapping[Target, int]
    ) -> dict[Target, Trail]:
        """Of each input partition of a round that wrote last at `written`."""
        firsts, until = first_offsets(consumed.records), next_offsets(consumed.records)
        kept = {place: self._trails.get(place, {}) for place in consumed.until or {}}
        return kept | {
            place: after(self._trails.get(place, {}), written, first, until[place])
            for place, first in firsts.items()
        }

    def keep(self, trails: Mapping[Target, Trail]) -> None:
        """These were committed."""
        self._trails.update(trails)

    def forget(self, place: Target, targets: Collection[Target]) -> None:
        trail = self._trails.get(place, {})
        self._trails[place] = {t: step for t, step in trail.items() if t not in targets}

    def _commits(self) -> list[Any]:
        if not (assigned := self.client.assignment()):
            return []
        try:
            places = self.client.committed(assigned, timeout=ANSWER_S)
        except KafkaException as error:
            raise went_down("read commits", error, self._bootstrap) from error
        return [place for place in places if place.offset >= 0]

    def generation(self) -> int:
        return self._generation

    def close(self) -> None:
        """Leaves the group; a second time changes nothing.

        A partition that comes or goes amid librdkafka's close, as where the session ran out just
        before, may be asked about where nobody answers any more (its issue 4884), and the binding
        waits for that with the interpreter's lock. So the partitions are given up before.
        """
        deadline = time.monotonic() + _LEAVE_S
        with suppress(KafkaException, RuntimeError):  # a BusError, or one that is closed already
            self.client.unsubscribe()
            while self._consume(_LEFT_MESSAGES, 0.0) or self.client.assignment():
                if time.monotonic() > deadline:
                    break
                time.sleep(_LOOK_S)
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
        LOG.warning("%s: %s", bootstrap, error.str())
    return False


def positions_of(records: Sequence[Record]) -> list[Any]:
    return [TopicPartition(t, p, o) for (t, p), o in next_offsets(records).items()]
