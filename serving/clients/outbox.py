"""Writes to the bus from requests: gathered, bounded in time, never blocking an answer.

Knows messages and deadlines. Does not know what they mean. One thread sends what many
requests hand in, so they share a round trip; a request waits for its own message's
acknowledgement, and no longer than it said. While the broker does not take writes, most
are refused at once and one now and then tries.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from serving.clients.breaker import Breaker
from streams.bus.contract import Bus, BusError, Outgoing, Producer

_LOG = logging.getLogger(__name__)
_GATHER = 500  # hand-ins that share one send

_HandIn = tuple[list[Outgoing], "Future[None]"]


class Outbox:
    """Thread safe. Makes a new producer after an error, so it recovers by itself."""

    def __init__(self, bus: Bus, *, timeout_s: float = 2.0, depth: int = 2_000) -> None:
        self._bus, self._timeout_s = bus, timeout_s
        self._waiting: queue.Queue[_HandIn | None] = queue.Queue(depth)
        self._producer: Producer | None = None
        self._breaker = Breaker(failures=2, rest_s=1.0)
        self._thread = threading.Thread(target=self._drain, name="outbox", daemon=True)
        self._thread.start()

    def send(self, messages: Sequence[Outgoing]) -> None:
        """Returns when the broker has all of them.

        Raises:
            BusError: it did not say so in time. It may still get them: a producer that
                sends again uses the same event ids, and the mill counts each once.
        """
        if not self._breaker.allows():
            raise BusError(
                "the broker does not take writes now: send again with the same event ids"
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

    def _drain(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch: list[_HandIn] = [first]
            while len(batch) < _GATHER:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._deliver(batch)
                    return
                batch.append(more)
            self._deliver(batch)

    def _deliver(self, batch: list[_HandIn]) -> None:
        # A request that has given up is not sent on behalf of: it was told to send again.
        live = [(messages, done) for messages, done in batch if done.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            if self._producer is None:
                self._producer = self._bus.producer(timeout_s=self._timeout_s)
            self._producer.send([message for messages, _ in live for message in messages])
        except Exception as error:
            _LOG.warning("could not write to the broker: %s", error)
            self._breaker.failed()
            self._drop_producer()
            failure = error if isinstance(error, BusError) else BusError(str(error))
            for _, done in live:
                done.set_exception(failure)
            return
        self._breaker.succeeded()
        for _, done in live:
            done.set_result(None)

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        try:
            if producer is not None:
                producer.close()
        except Exception as error:
            _LOG.debug("closing the failed producer: %s", error)
