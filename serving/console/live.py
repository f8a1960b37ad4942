"""Reads the bus for the gateway: catalogue, activity, dead letters and published releases.

Knows topics and what each record changes. Does not know HTTP (`serving.http.api.stream`)
nor who subscribes (`serving.console.hub`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from serving.console.hub import EventHub, LiveMessage
from serving.monitoring.metrics import Metrics
from serving.state.reached import Reached, no_totals
from streams.bus.commit_metadata import TopicPartition
from streams.bus.consume import tail
from streams.bus.contract import Bus, BusError, Consumer
from streams.bus.polled import Record
from streams.catalogue import parse_catalogue_event
from streams.codec.batches import NewerWriterError, read_batch
from streams.codec.decode import Rejection
from streams.codec.inputs import RejectedRecord, log_rejected, no_limit
from streams.contract.declaration import contract
from streams.contract.topics import (
    BEHAVIOUR_DEAD,
    CATALOGUE,
    ERASURES,
    EVENTS_BY_USER,
    MODELS_PUBLISHED,
)
from streams.erasure import parse_erasure
from streams.ingest.dead_letters import DEAD_LETTER_HEADER

_LOG = logging.getLogger(__name__)
_OTHERS_PER_BATCH = 12  # events of unwatched users shown per batch; watched users' are all shown
_RETRY_S = 1.0
_CLOCK_SKEW_MS = 5_000
_VALUE_SHOWN = 300  # bytes of a dead letter
_READ_ON = 1_000  # records at once
_TOPICS = (EVENTS_BY_USER, BEHAVIOUR_DEAD, MODELS_PUBLISHED, ERASURES)
_SHOWN_FIELDS: tuple[str, ...] = (
    *("event_id", "user_id", "kind", "video_id", "query", "event_time_ms"),
    *("ingested_at_ms", "surface", "origin", "late", "duplicate"),
)


class LiveReader:
    """Reads the bus on two threads: one for the catalogue, one for everything else."""

    def __init__(
        self,
        bus: Bus,
        reached: Reached,
        metrics: Metrics,
        hub: EventHub,
        on_release: Callable[[], None] = lambda: None,
        on_user_event: Callable[[str], None] = lambda _: None,
        on_erasure: Callable[[str], None] = lambda _: None,
        latest_ms: Callable[[], int] = no_limit,
    ) -> None:
        """`reached`: the state that is kept up to date, read on from where it ends.
        `latest_ms`: see `streams.catalogue.parse_catalogue_event`."""
        self._bus, self._reached = bus, reached
        self._catalogue, self._activity = reached.catalogue, reached.activity
        self._metrics, self._hub = metrics, hub
        self._on_release, self._on_user_event = on_release, on_user_event
        self._on_erasure = on_erasure
        self._latest_ms = latest_ms
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._started_ms = time.time_ns() // 1_000_000
        self._reads_on = False  # records are new here, however old
        self.totals = reached.totals

    def read_on(self) -> None:
        """Reads the topics to their present ends on the calling thread, which owns `reached`.

        Raises:
            BusError: the broker does not answer; a later call reads on from where this one ended.
        """
        for topic in (CATALOGUE, *_TOPICS):
            topic_id = self._bus.topic_id(topic)
            self._reads_on = same = self._reached.topic_ids.get(topic) == topic_id
            self._reached.topic_ids[topic] = topic_id
            apply = _log_failures(self._apply_catalogue if topic == CATALOGUE else self._apply)
            for partition, (first, end) in self._bus.ends(topic).items():
                at = (topic, partition)
                start = max(first, self._reached.next_offsets.get(at, 0) if same else 0)
                records = self._bus.scan(topic, partition, start, end)
                while batch := list(islice(records, _READ_ON)):
                    apply(batch)
                    self._reached.next_offsets[at] = batch[-1].offset + 1
                self._reached.next_offsets[at] = max(start, end)

    def start(self) -> None:
        for name, topics, apply in (
            ("live-catalogue", [CATALOGUE], self._apply_catalogue),
            ("live-events", list(_TOPICS), self._apply),
        ):
            thread = threading.Thread(target=self._tail, args=(topics, apply), name=name)
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)

    def _tail(self, topics: Sequence[str], apply: Callable[[Sequence[Record]], None]) -> None:
        """Reads the topics, from where `reached` ends or from their start, until stopped;
        reconnects after a failure."""
        known: dict[str, str] = {}
        reached: Reached | None = self._reached
        while not self._stop.is_set():
            consumer: Consumer | None = None
            try:
                topic_ids = self._bus.topic_ids(topics)
                consumer = self._bus.consumer(topics, f"gateway-{uuid.uuid4().hex}")
                offsets = reached.offsets_of(topics, topic_ids) if reached else {}
                if EVENTS_BY_USER in topics and topic_ids == known:
                    self._reset_totals()
                known, reached = topic_ids, None
                unread = _Unread(consumer, offsets, _log_failures(apply))
                tail(self._bus, consumer, topic_ids, unread, self._stop)
            except BusError as error:
                _LOG.warning("reading %s was interrupted: %s", ", ".join(topics), error)
                self._stop.wait(_RETRY_S)
            finally:
                if consumer is not None:
                    consumer.close()

    def _reset_totals(self) -> None:
        """Drops the counts, because the same topics are read from their start again.

        Not called after a topic was recreated: its earlier events cannot be read again.
        """
        self._activity.reset()
        self.totals = no_totals()

    def _apply_catalogue(self, records: Sequence[Record]) -> None:
        latest_ms = self._latest_ms()
        for record in records:
            event = parse_catalogue_event(record, latest_ms)
            if isinstance(event, Rejection):
                log_rejected([RejectedRecord(record, *event)])
            else:
                self._catalogue.apply(event)

    def _apply(self, records: Sequence[Record]) -> None:
        tables = []
        for record in records:
            if record.topic == EVENTS_BY_USER:
                if (table := _readable(record)) is not None:
                    tables.append((record, table))
            elif record.topic == BEHAVIOUR_DEAD:
                self._apply_dead_letter(record)
            elif record.topic == ERASURES:
                self._apply_erasure(record)
            else:
                self._apply_release(record)
        if tables:
            self._apply_events(tables)

    def _apply_events(self, tables: list[tuple[Record, pa.Table]]) -> None:
        table = pa.concat_tables([table for _, table in tables])
        self._activity.fold(table)
        self._count(table)
        recent = [table for record, table in tables if self._is_recent(record)]
        if recent and self._hub.has_subscribers():
            self._publish_events(pa.concat_tables(recent))

    def _is_recent(self, record: Record) -> bool:
        """False for records that were written before this process started."""
        return record.timestamp_ms >= self._started_ms - _CLOCK_SKEW_MS

    def _count(self, table: pa.Table) -> None:
        self.totals["events"] += table.num_rows
        self.totals["late"] += int(sum(table["late"].to_pylist()))
        self.totals["duplicates"] += int(sum(table["duplicate"].to_pylist()))
        self._metrics.events_seen.inc(table.num_rows)

    def _publish_events(self, table: pa.Table) -> None:
        watched = self._hub.watched_users()
        others, names = 0, contract().signals.name
        for row in table.select(list(_SHOWN_FIELDS)).to_pylist():
            row |= {"kind": names[row["kind"]], "item_id": row["video_id"]}
            own = row["user_id"] in watched
            if own:
                self._on_user_event(row["user_id"])
            if own or others < _OTHERS_PER_BATCH:
                others += not own
                self._hub.publish(LiveMessage("event", row))

    def _apply_dead_letter(self, record: Record) -> None:
        why = _json_object(record.header(DEAD_LETTER_HEADER))
        self.totals["dead"] += 1
        self._metrics.dead_seen.labels(str(why.get("cause", "unknown"))).inc()
        if self._is_recent(record):
            value = (record.value or b"")[:_VALUE_SHOWN].decode("utf-8", "replace")
            self._hub.publish(LiveMessage("dead", why | {"value": value}))

    def _apply_erasure(self, record: Record) -> None:
        """Other processes took the request. An old one is not applied where topics are read from
        their start: their order is unknown, and the user may have come back."""
        erasure = parse_erasure(record, self._latest_ms())
        if (self._reads_on or self._is_recent(record)) and not isinstance(erasure, Rejection):
            try:
                self._on_erasure(erasure.user_id)
            except Exception:
                _LOG.exception("what is kept of an erased user was not dropped")

    def _apply_release(self, record: Record) -> None:
        self._on_release()
        if self._is_recent(record):
            self._hub.publish(LiveMessage("update", _json_object(record.value)))


class _Unread:
    """Passes on what was not read yet: a group's reader begins at a topic's start, and a rebalance
    takes it there again.

    offsets: where to begin, by topic and partition.
    """

    def __init__(
        self,
        consumer: Consumer,
        offsets: dict[TopicPartition, int],
        apply: Callable[[Sequence[Record]], None],
    ) -> None:
        self._consumer, self._next, self._apply = consumer, offsets, apply

    def __call__(self, records: Sequence[Record]) -> None:
        unread, behind = [], set[TopicPartition]()
        for record in records:
            at = (record.topic, record.partition)
            if record.offset < self._next.get(at, 0):
                behind.add(at)
            else:
                unread.append(record)
                self._next[at] = record.offset + 1
        if unread:
            self._apply(unread)
        for at in behind:
            with contextlib.suppress(BusError):  # not assigned any more; else at the next poll
                self._consumer.seek(*at, self._next[at])


def _readable(record: Record) -> pa.Table | None:
    """The events of a record; None for what a reader of the page's feed cannot show."""
    try:
        return read_batch(record)
    except NewerWriterError as error:
        _LOG.warning("%s", error)
        return None


def _log_failures(
    apply: Callable[[Sequence[Record]], None],
) -> Callable[[Sequence[Record]], None]:
    """`apply`, except that records on which it fails are skipped and the failure is logged."""

    def apply_or_log(records: Sequence[Record]) -> None:
        try:
            apply(records)
        except Exception:
            _LOG.exception("a batch of live messages was skipped")

    return apply_or_log


def _json_object(value: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(value or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
