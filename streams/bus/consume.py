"""What a consume-process-produce loop is made of: its input, its rounds, its end.

Knows polls, generations, epochs and threads. Does not know what a round does.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from streams.bus.contract import Bus, BusError, Polled
from streams.telemetry import name_thread

MAX_POLL = 50_000  # a transaction's waits are shared by so many
_FULL = 10_000  # whoever is given so many has fallen behind and does not rest
_EPOCH_EVERY_S = 1.0
_TURN_S = 0.1
_LONGEST_REST_S = 0.1
_LOG = logging.getLogger(__name__)


class Loop(Protocol):
    def turn(self, timeout_s: float) -> int:
        """Works off one poll, or returns 0 after `timeout_s`."""

    def close(self) -> None: ...


class Input:
    """A topic as one member of a group reads it, with its epoch held to be the same."""

    def __init__(
        self,
        bus: Bus,
        topic: str,
        group: str,
        pace_s: float = 0.0,
        settle_s: float = 0.0,
        gather_s: float = 0.0,
    ) -> None:
        """Rounds begin at least `pace_s` apart, and rest as long as the one before took.

        A round has a cost of its own, on the broker above all, however little it carries.
        So where the machine has no time left, rounds become fewer and larger, until they
        cost what there is; a loop that is far behind fills its polls and does not rest.

        `settle_s`: how long a poll that brought something waits for what belongs to it. A
        transaction becomes readable partition by partition, and what the first of them
        wakes should not leave the others to the next round. `gather_s`: as of `Bus.consumer`.
        """
        self._bus, self.topic = bus, topic
        self._pace_s, self._settle_s = pace_s, settle_s
        self._began, self._rests = float("-inf"), False
        self.epoch = bus.epoch(topic)
        self.consumer = bus.consumer([topic], group, gather_s=gather_s)
        self.generation = -1
        self._checked = time.monotonic()

    def poll(self, timeout_s: float) -> Polled:
        """One poll, when its time has come.

        Records that were read before partitions changed hands are dropped: whoever
        owns them now reads them again.
        """
        time.sleep(max(0.0, self._due() - time.monotonic()))
        records = self.consumer.poll(MAX_POLL, timeout_s)
        if records and self._settle_s:
            before = self.consumer.generation()
            time.sleep(self._settle_s)
            more = self.consumer.poll(MAX_POLL, 0.0)
            records = records + more if self.consumer.generation() == before else more
        if records:
            self._began = time.monotonic()
        self._rests = 0 < len(records) < _FULL
        self.generation = self.consumer.generation()
        self._hold_epoch()
        return records

    def committed(self) -> dict[int, int]:
        """The group's next offset in each partition that this member reads and that has one."""
        return {partition: offset for (_, partition), offset in self.consumer.committed().items()}

    def _due(self) -> float:
        """When the next round may begin (monotonic s); called at the end of the last."""
        now = time.monotonic()
        rest = min(now - self._began, _LONGEST_REST_S) if self._rests else 0.0
        return max(now + rest, self._began + self._pace_s)

    def _hold_epoch(self) -> None:
        if time.monotonic() - self._checked < _EPOCH_EVERY_S:
            return
        if (now := self._bus.epoch(self.topic)) != self.epoch:
            raise BusError(
                f"{self.topic!r} began again (epoch {self.epoch} -> {now}): start this process "
                "again, it reads the new epoch from its beginning"
            )
        self._checked = time.monotonic()


def spare_the_collector() -> None:
    """Lets Python look for cycles seldom. Call it once, when a process has been set up.

    A poll makes tens of thousands of objects that live until its end and are in no cycle;
    by default they are all looked at again for every 700 that are made.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def run_loops(factories: Mapping[str, Callable[[], Loop]], stop: threading.Event) -> None:
    """Runs each loop in a thread of its own until `stop`; the first failure ends them all.

    Raises what the first failed loop raised.
    """
    failures: list[BaseException] = []
    spare_the_collector()

    def work(make: Callable[[], Loop]) -> None:
        name_thread(threading.current_thread().name)
        with _noted(failures, stop):
            loop = make()
            try:
                with _noted(failures, stop):  # before it closes, which may take its time
                    while not stop.is_set():
                        loop.turn(_TURN_S)
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
def _noted(failures: list[BaseException], stop: threading.Event) -> Iterator[None]:
    """What is raised here is kept and logged, and everyone is told to stop."""
    try:
        yield
    except BaseException as error:
        _LOG.error("%s ends: %r", threading.current_thread().name, error)
        failures.append(error)
        stop.set()
