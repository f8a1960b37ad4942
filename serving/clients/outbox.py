"""Writes from requests to the bus: batched, with a deadline.

Knows messages and deadlines. Does not know what the messages mean. One thread sends what
many requests submit, so they share a round trip. A request waits for the acknowledgement
of its own messages, at most `timeout_s`. While the broker does not accept writes, a
breaker rejects most of them at once and lets one per second try. A message that the broker
refuses for good fails only the request that submitted it, and does not count as an outage.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from serving.clients.breaker import Breaker
from streams.bus.contract import (
    MAX_MESSAGE_BYTES,
    Bus,
    BusError,
    MessagesRejected,
    Outgoing,
    Producer,
    message_bytes,
    too_large,
)

_LOG = logging.getLogger(__name__)
_MAX_BATCH = 500  # submissions per send

_Submission = tuple[list[Outgoing], "Future[None]"]


class Outbox:
    """Thread safe. Opens a new producer after an error, so it recovers by itself."""

    def __init__(
        self,
        bus: Bus,
        *,
        timeout_s: float = 2.0,
        depth: int = 2_000,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._bus, self._timeout_s, self._max_bytes = bus, timeout_s, max_message_bytes
        self._waiting: queue.Queue[_Submission | None] = queue.Queue(depth)
        self._producer: Producer | None = None
        self._breaker = Breaker(failures=2, retry_after_s=1.0)
        self._thread = threading.Thread(target=self._send_loop, name="outbox", daemon=True)
        self._thread.start()

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Returns when the broker has acknowledged all messages.

        Raises:
            MessagesRejected: the broker never takes some of them, such as those that are too
                large. Sending them again is of no use.
            BusError: no acknowledgement within `timeout_s`. The broker may still store the
                messages: send again with the same event ids, and ingest removes duplicates.
        """
        self._check_sizes(messages)
        if not self._breaker.allows():
            raise BusError(
                "the broker does not accept writes now: send again with the same event ids"
            )
        done: Future[None] = Future()
        try:
            self._waiting.put_nowait((list(messages), done))
        except queue.Full:
            raise BusError("too many writes are waiting for the broker: try again later") from None
        try:
            done.result(self._timeout_s)
        except TimeoutError:
            done.cancel()
            raise BusError(
                f"the broker did not acknowledge within {self._timeout_s:g} s: send again with "
                "the same event ids"
            ) from None

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(self._timeout_s)

    def _check_sizes(self, messages: Sequence[Outgoing]) -> None:
        sizes = map(message_bytes, messages)
        rejected = {
            index: too_large(size, self._max_bytes)
            for index, size in enumerate(sizes)
            if size > self._max_bytes
        }
        if rejected:
            raise MessagesRejected(rejected)

    def _send_loop(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch: list[_Submission] = [first]
            while len(batch) < _MAX_BATCH:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._send_batch(batch)
                    return
                batch.append(more)
            self._send_batch(batch)

    def _send_batch(self, batch: list[_Submission]) -> None:
        # Cancelled submissions are skipped: their callers were asked to send again.
        live = [(messages, done) for messages, done in batch if done.set_running_or_notify_cancel()]
        if not live:
            return
        reasons: dict[int, str] = {}
        try:
            if self._producer is None:
                self._producer = self._bus.producer(timeout_s=self._timeout_s)
            self._producer.send([message for messages, _ in live for message in messages])
        except MessagesRejected as rejected:
            reasons = rejected.reasons  # all others are written
        except Exception as error:
            _LOG.warning("writing to the broker failed: %s", error)
            self._breaker.failed()
            self._drop_producer()
            failure = error if isinstance(error, BusError) else BusError(str(error))
            for _, done in live:
                done.set_exception(failure)
            return
        self._breaker.succeeded()
        _resolve(live, reasons)

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        try:
            if producer is not None:
                producer.close()
        except Exception as error:
            _LOG.debug("closing the failed producer: %s", error)


def _resolve(batch: Sequence[_Submission], reasons: dict[int, str]) -> None:
    """Answers every submission; `reasons`: index in the whole batch -> why it was rejected."""
    start = 0
    for messages, done in batch:
        own = {i: reasons[start + i] for i in range(len(messages)) if start + i in reasons}
        start += len(messages)
        if own:
            done.set_exception(MessagesRejected(own))
        else:
            done.set_result(None)
