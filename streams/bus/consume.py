"""The consume loop: poll, process, commit. Every consumer in the stack runs this one.

Knows polls, rebalances, topic ids and threads. Does not know what happens to the records.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Generic, Protocol, TypeVar

from streams.bus.contract import Bus, BusError, Consumer
from streams.bus.polled import Polled
from streams.metrics import CONSUMER_LAG, base_group
from streams.telemetry import name_thread

MAX_POLL = 50_000  # records, which share the waits of one transaction
_LAGGING_POLL = 10_000  # A poll this large means that this consumer lags: skip the idle pause.
_TOPIC_ID_CHECK_S = 1.0
_TAIL_TOPIC_ID_CHECK_S = 2.0
_POLL_TIMEOUT_S = 0.1
_MAX_IDLE_S = 0.1
LAG_EVERY_S = 5.0
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Loop(Protocol):
    def run_once(self, timeout_s: float) -> int:
        """Processes one poll; returns its record count, or 0 after `timeout_s`."""

    def close(self) -> None: ...


class ConsumeLoop(Generic[T]):
    """Polls, processes, commits. At least once: what was not committed is read again.

    Not thread-safe.
    """

    def __init__(
        self,
        poll: Callable[[float], Polled],
        process: Callable[[Polled], T],
        commit: Callable[[T, Polled], object],
        on_poll: Callable[[], object] = lambda: None,
    ) -> None:
        """`poll` takes a timeout in seconds; `commit` takes what `process` returned.

        `on_poll` runs after every poll, an empty one too: partitions may have been reassigned.
        """
        self._poll, self._process, self._commit = poll, process, commit
        self._on_poll = on_poll

    def run_once(self, timeout_s: float) -> int:
        records = self._poll(timeout_s)
        self._on_poll()
        if records:
            self._commit(self._process(records), records)
        return len(records)

    def run(self, stop: threading.Event, timeout_s: float = _POLL_TIMEOUT_S) -> None:
        """Until `stop` is set."""
        while not stop.is_set():
            self.run_once(timeout_s)


class LagMeter:
    """Exports one consumer's lag now and then. Call `measure` in the consumer's own thread."""

    def __init__(self, consumer: Consumer, topic: str, group: str) -> None:
        self._consumer, self._measured = consumer, float("-inf")
        self._gauge = CONSUMER_LAG.labels(base_group(group), topic)

    def measure(self) -> None:
        """Exports it, unless that was done less than `LAG_EVERY_S` ago."""
        if time.monotonic() - self._measured < LAG_EVERY_S:
            return
        self._measured = time.monotonic()
        with suppress(BusError):  # amid a rebalance: the last value stands
            self._gauge.set(self._consumer.lag())


def consume(
    bus: Bus,
    topic: str,
    group: str,
    process: Callable[[Polled], bool | None],
    stop: threading.Event,
    *,
    max_records: int = 1_000,
) -> None:
    """Passes a topic's records to `process`, as a member of `group`, until `stop` is set.

    Commits after `process` has returned, so a crash loses nothing. If `process` returns False
    (it was interrupted), the records are not committed.
    """
    consumer = bus.consumer([topic], group)

    def commit(done: bool | None, records: Polled) -> None:
        if done is not False:
            consumer.commit(records)

    lag = LagMeter(consumer, topic, group)
    try:
        ConsumeLoop(partial(consumer.poll, max_records), process, commit, lag.measure).run(
            stop, 0.2
        )
    finally:
        consumer.close()


def tail(
    bus: Bus,
    consumer: Consumer,
    topic_ids: Mapping[str, str],
    process: Callable[[Polled], object],
    stop: threading.Event,
) -> None:
    """Passes records to `process` and commits nothing, until `stop` is set or a topic of
    `topic_ids` was recreated."""
    checked = time.monotonic()
    while not stop.is_set():
        if records := consumer.poll(1_000, _POLL_TIMEOUT_S):
            process(records)
        if time.monotonic() - checked > _TAIL_TOPIC_ID_CHECK_S:
            checked = time.monotonic()
            with suppress(BusError):  # the broker is down: the consumer reconnects by itself
                if bus.topic_ids(list(topic_ids)) != topic_ids:
                    return


class Input:
    """One member's view of a topic: rate-limited polls, and a check that its id is unchanged."""

    def __init__(
        self,
        bus: Bus,
        topic: str,
        group: str,
        min_poll_interval_s: float = 0.0,
        linger_s: float = 0.0,
        fetch_max_wait_s: float = 0.0,
    ) -> None:
        """Polls start at least `min_poll_interval_s` apart, and pause as long as the last took.

        A poll has a fixed cost, above all on the broker, however few records it returns. When
        the machine is short of CPU, the pause makes polls fewer and larger until they fit. A
        lagging loop fills its polls and does not pause.

        `linger_s`: how long a poll with records waits for more. A transaction becomes readable
        partition by partition, and the first of them should not be processed alone.
        `fetch_max_wait_s`: see `Bus.consumer`.
        """
        self._bus, self.topic = bus, topic
        self._min_poll_interval_s, self._linger_s = min_poll_interval_s, linger_s
        self._started, self._pauses = float("-inf"), False
        self.topic_id = bus.topic_id(topic)
        self.consumer = bus.consumer([topic], group, fetch_max_wait_s=fetch_max_wait_s)
        self._lag = LagMeter(self.consumer, topic, group)
        self.assignment_version = -1
        self._checked = time.monotonic()

    def poll(self, timeout_s: float) -> Polled:
        """The next poll, when it is due. Raises `BusError` if the topic was recreated.

        Records fetched before a rebalance are discarded; the new owner resumes at the committed
        offset.
        """
        time.sleep(max(0.0, self._due() - time.monotonic()))
        records = self.consumer.poll(MAX_POLL, timeout_s)
        if records and self._linger_s:
            version = self.consumer.assignment_version()
            time.sleep(self._linger_s)
            more = self.consumer.poll(MAX_POLL, 0.0)
            records = records + more if self.consumer.assignment_version() == version else more
        if records:
            self._started = time.monotonic()
        self._pauses = 0 < len(records) < _LAGGING_POLL
        self.assignment_version = self.consumer.assignment_version()
        self._check_topic_id()
        self._lag.measure()
        return records

    def committed(self) -> dict[int, int]:
        """The group's next offset in each assigned partition that has a commit."""
        return {partition: offset for (_, partition), offset in self.consumer.committed().items()}

    def _due(self) -> float:
        """When the next poll may start (monotonic s); call it when the last one is processed."""
        now = time.monotonic()
        pause = min(now - self._started, _MAX_IDLE_S) if self._pauses else 0.0
        return max(now + pause, self._started + self._min_poll_interval_s)

    def _check_topic_id(self) -> None:
        if time.monotonic() - self._checked < _TOPIC_ID_CHECK_S:
            return
        if (now := self._bus.topic_id(self.topic)) != self.topic_id:
            raise BusError(
                f"{self.topic!r} was recreated (topic id {self.topic_id} -> {now}): restart this "
                "process, it then reads the new topic from its start"
            )
        self._checked = time.monotonic()


def tune_gc() -> None:
    """Makes garbage collection rare. Call it once, when the process is set up.

    A poll makes tens of thousands of objects without cycles that live until it is processed. By
    default Python scans them again for every 700 new ones.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def run_loops(factories: Mapping[str, Callable[[], Loop]], stop: threading.Event) -> None:
    """Runs each loop in its own thread until `stop` is set; one failure stops them all.

    Raises the first failure.
    """
    failures: list[BaseException] = []
    tune_gc()

    def work(make: Callable[[], Loop]) -> None:
        name_thread(threading.current_thread().name)
        with _stop_on_failure(failures, stop):
            loop = make()
            try:
                with _stop_on_failure(failures, stop):  # before the close, which may take long
                    while not stop.is_set():
                        loop.run_once(_POLL_TIMEOUT_S)
            finally:
                loop.close()

    threads = [
        threading.Thread(target=work, args=(make,), name=name) for name, make in factories.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _stop_on_failure(failures: list[BaseException], stop: threading.Event) -> Iterator[None]:
    """Records and logs an exception, and stops all loops."""
    try:
        yield
    except BaseException as error:
        _LOG.error("%s ends: %r", threading.current_thread().name, error)
        failures.append(error)
        stop.set()
