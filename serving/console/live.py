"""What happens now: the bus tailed for the page, the catalogue and the release switch.

Knows topics and who is listening. Does not know HTTP (`serving.http.api.stream` turns
messages into server-sent events). Threads read the bus; listeners have bounded mailboxes that drop
their oldest message, so a slow page never holds up the mill.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from serving.monitoring.metrics import Metrics
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from streams.bus.contract import Bus, BusError, Consumer, Record
from streams.catalogue import parse
from streams.contract.events import KINDS
from streams.contract.schema import from_ipc
from streams.contract.topics import BEHAVIOUR_DEAD, CATALOGUE, EVENTS_BY_USER, MODELS_PUBLISHED
from streams.ingest.dead_letters import LETTER_HEADER

_LOG = logging.getLogger(__name__)
_EVENTS_PER_BATCH = 12  # of the crowd's events, shown to everybody; a user's own all go
_RETRY_S = 1.0
_EPOCH_EVERY_S = 2.0
_SHOWN_FIELDS: tuple[str, ...] = (
    *("event_id", "user_id", "kind", "video_id", "query", "event_time_ms"),
    *("ingested_at_ms", "surface", "origin", "late", "duplicate"),
)


@dataclass(frozen=True)
class Message:
    """One thing that happened. `user_id` None: for everybody."""

    kind: str  # event, dead, feature, release, update, stats
    data: dict[str, Any]
    user_id: str | None = None


@dataclass(eq=False)
class Mailbox:
    """One listener's messages, oldest dropped first when full."""

    user_id: str | None
    wake: Callable[[], object]
    messages: deque[Message] = field(default_factory=lambda: deque(maxlen=500))

    def put(self, message: Message) -> None:
        self.messages.append(message)
        self.wake()


class Live:
    """Reads the bus on two threads and passes on what it reads."""

    def __init__(
        self,
        bus: Bus,
        catalogue: LiveCatalogue,
        activity: Activity,
        metrics: Metrics,
        on_release: Callable[[], None] = lambda: None,
        on_user_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._bus, self._catalogue, self._activity = bus, catalogue, activity
        self._metrics, self._on_release = metrics, on_release
        self._on_user_event = on_user_event
        self._mailboxes: set[Mailbox] = set()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._started_ms = time.time_ns() // 1_000_000
        self.totals = {"events": 0, "late": 0, "duplicates": 0, "dead": 0}

    def subscribe(self, mailbox: Mailbox) -> None:
        self._mailboxes.add(mailbox)

    def unsubscribe(self, mailbox: Mailbox) -> None:
        self._mailboxes.discard(mailbox)

    def watched(self) -> set[str]:
        """Users whom some page looks at."""
        return {m.user_id for m in list(self._mailboxes) if m.user_id is not None}

    def publish(self, message: Message) -> None:
        for mailbox in list(self._mailboxes):
            if message.user_id in (None, mailbox.user_id):
                mailbox.put(message)

    def start(self) -> None:
        for name, topics, take in (
            ("live-catalogue", [CATALOGUE], self._take_catalogue),
            ("live-events", [EVENTS_BY_USER, BEHAVIOUR_DEAD, MODELS_PUBLISHED], self._take),
        ):
            thread = threading.Thread(target=self._tail, args=(topics, take), name=name)
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)

    def _tail(self, topics: Sequence[str], take: Callable[[Sequence[Record]], None]) -> None:
        """Reads the topics from their start, again after every failure, until stopped."""
        known: dict[str, str] = {}
        while not self._stop.is_set():
            consumer: Consumer | None = None
            try:
                epochs = self._epochs(topics)
                consumer = self._bus.consumer(topics, f"gateway-{uuid.uuid4().hex}")
                if EVENTS_BY_USER in topics and epochs == known:
                    self._begin_again()
                known = epochs
                self._read(consumer, take, epochs)
            except BusError as error:
                _LOG.warning("reading %s is interrupted: %s", ", ".join(topics), error)
                self._stop.wait(_RETRY_S)
            finally:
                if consumer is not None:
                    consumer.close()

    def _epochs(self, topics: Iterable[str]) -> dict[str, str]:
        return self._bus.epochs(list(topics))

    def _begin_again(self) -> None:
        """The same topics are read from their start, so what was counted of them is dropped.

        Topics that were made anew hold none of it: then what was counted stays.
        """
        self._activity.reset()
        self.totals = dict.fromkeys(self.totals, 0)

    def _read(
        self, consumer: Consumer, take: Callable[[Sequence[Record]], None], epochs: dict[str, str]
    ) -> None:
        """Returns when stopped, or when a topic was made anew: its offsets start again."""
        asked = time.monotonic()
        while not self._stop.is_set():
            records = consumer.poll(1_000, 0.1)
            if records:
                try:
                    take(records)
                except Exception:
                    _LOG.exception("a batch of live messages was left out")
            if time.monotonic() - asked > _EPOCH_EVERY_S:
                asked = time.monotonic()
                with suppress(BusError):  # down: the consumer goes on by itself
                    if self._epochs(epochs.keys()) != epochs:
                        return

    def _take_catalogue(self, records: Sequence[Record]) -> None:
        for record in records:
            event = parse(record)
            if event is not None:
                self._catalogue.apply(event)

    def _take(self, records: Sequence[Record]) -> None:
        tables = []
        for record in records:
            if record.topic == EVENTS_BY_USER:
                tables.append((record, from_ipc(record.value or b"")))
            elif record.topic == BEHAVIOUR_DEAD:
                self._dead(record)
            else:
                self._released(record)
        if tables:
            self._events(tables)

    def _events(self, tables: list[tuple[Record, pa.Table]]) -> None:
        table = pa.concat_tables([table for _, table in tables])
        self._activity.fold(table)
        self._count(table)
        fresh = [t for record, t in tables if record.timestamp_ms >= self._started_ms - 5_000]
        if fresh and self._mailboxes:
            self._show(pa.concat_tables(fresh))

    def _count(self, table: pa.Table) -> None:
        self.totals["events"] += table.num_rows
        self.totals["late"] += int(sum(table["late"].to_pylist()))
        self.totals["duplicates"] += int(sum(table["duplicate"].to_pylist()))
        self._metrics.events_seen.inc(table.num_rows)

    def _show(self, table: pa.Table) -> None:
        watched = self.watched()
        others = 0
        for row in table.select(list(_SHOWN_FIELDS)).to_pylist():
            row["kind"] = KINDS[row["kind"]]
            own = row["user_id"] in watched
            if own:
                self._on_user_event(row["user_id"])
            if own or others < _EVENTS_PER_BATCH:
                others += not own
                self.publish(Message("event", row))

    def _dead(self, record: Record) -> None:
        why = _json(record.header(LETTER_HEADER))
        self.totals["dead"] += 1
        self._metrics.dead_seen.labels(str(why.get("cause", "unknown"))).inc()
        if record.timestamp_ms >= self._started_ms - 5_000:
            began = (record.value or b"")[:300].decode("utf-8", "replace")
            self.publish(Message("dead", why | {"value": began}))

    def _released(self, record: Record) -> None:
        self._on_release()
        if record.timestamp_ms >= self._started_ms - 5_000:
            self.publish(Message("update", _json(record.value)))


def _json(value: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(value or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
