"""Topic ids: a recreated topic is noticed before a batch of it is handled.

Knows the ids at the start and when they were last confirmed. Does not know batches.

A recreated topic restarts at offset 0 under another topic id. A worker confirms the id after a
batch was fetched and before it is handled, and once a second besides. When it has changed, the
worker ends and restarts in a consumer group of the new id. So a stamp never carries a topic id
that its batch is not of.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Sequence

from streams.bus.contract import Bus, BusError

_RETRY_S = 0.2
_log = logging.getLogger(__name__)


class TopicRecreated(RuntimeError):
    """The topic's offsets restarted."""


class TopicIds:
    """The ids of a worker's topics at its start. Thread-safe.

    One request asks for all of them, so threads that ask at once share one answer.
    """

    def __init__(self, bus: Bus, topics: Sequence[str]) -> None:
        self._bus = bus
        self._confirmed = time.monotonic()
        self._asking = threading.Lock()
        self.known = bus.topic_ids(topics)

    def confirm(self, topic: str, fetched_at: float) -> str:
        """The topic id of a message that was fetched no later than `fetched_at` (monotonic s).

        Ids are never reused: one that is unchanged after the fetch was valid during it.

        Raises:
            TopicRecreated: a topic was recreated since the worker started.
            BusError: the broker does not answer.
        """
        if self._confirmed < fetched_at:
            with self._asking:
                if self._confirmed < fetched_at:
                    self._ask()
        return self.known[topic]

    def _ask(self) -> None:
        asked = time.monotonic()
        found = self._bus.topic_ids(list(self.known))
        if changed := [topic for topic, known in self.known.items() if found[topic] != known]:
            raise TopicRecreated(f"topic {changed[0]!r} was recreated: its offsets restart")
        self._confirmed = asked

    def consumer_group(self, name: str) -> str:
        """A group name with a hash of the ids, so that no commit outlives a recreated topic."""
        text = ",".join(f"{topic}={known}" for topic, known in sorted(self.known.items()))
        return f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def await_topic_ids(
    bus: Bus, topics: Sequence[str], timeout_s: float, stop: threading.Event
) -> TopicIds | None:
    """Waits for the topics to exist; None after `timeout_s` or when `stop` is set."""
    deadline = time.monotonic() + timeout_s
    while not stop.is_set():
        try:
            return TopicIds(bus, topics)
        except BusError as error:
            if time.monotonic() > deadline:
                _log.error("worker ends: %s", error)
                return None
            stop.wait(_RETRY_S)
    return None
