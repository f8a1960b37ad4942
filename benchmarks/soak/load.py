"""The demo's stack with its history, its models and its crowd, and what is written per event.

Knows the demo's parts and the processes' counters. Does not know memory.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from deploy import wiring
from deploy.console import out
from deploy.demo.flow import await_page, events_handled
from deploy.demo.learning import ALIGNED, run_learning
from deploy.demo.run import demo_settings
from deploy.settings import load
from deploy.simulation.config import DEFAULT_PATH, WorldConfig
from deploy.simulation.crowd import Crowd, run_until
from deploy.simulation.history import history
from deploy.simulation.movielens import load as load_data
from deploy.simulation.replay import replay
from deploy.simulation.tally import Tally
from deploy.simulation.truth import plant
from deploy.stack import Stack

LOG_TIMEOUT_S = 300.0
TRAIN_TIMEOUT_S = 1_200.0
WRITERS = ("log-writer", "broker")


@dataclass
class Written:
    """Bytes that reached the disk while events were handled."""

    events: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    broker_bytes: int = 0

    def __str__(self) -> str:
        count = max(self.events, 1)
        return (
            f"{self.events:,} events in {self.seconds:,.0f} s; the log writer wrote "
            f"{self.log_bytes / count:,.0f} and the broker {self.broker_bytes / count:,.0f} bytes "
            "per event"
        )


class LoadedStack:
    """The demo's stack in a home of its own. Use it as a context. `trained`: with a ranker."""

    def __init__(self, home: Path, *, trained: bool) -> None:
        self._world = WorldConfig.load(DEFAULT_PATH)
        settings = demo_settings(load(home=home), self._world, time.time_ns() // 1_000_000)
        self.stack = Stack(settings, step=out.print, report=_print_report)
        self._trained = trained
        data = load_data()
        end_ms = settings.clock.origin_ms - self._world.replay.gap_ms
        self._past = history(0, end_ms=end_ms, world=self._world, data=data)
        self._truth = plant(data, self._world, 0)

    def __enter__(self) -> Self:
        self.stack.start()
        await_page(self.stack.page)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.stop()

    @property
    def broker(self) -> str:
        return self.stack.settings.broker.kind

    def handled(self) -> int:
        return events_handled(self.stack.settings, "log-writer") or 0

    def replay_history(self) -> Written:
        """Loads catalogue and histories, then trains the ranker where `trained`."""
        settings = self.stack.settings
        with self.measured() as written:
            bus = wiring.bus(settings)
            sent = replay(
                bus, self._past, settings.home, progress=_ignore, log_dir=settings.log_dir
            )
            self._await_events(sent)
        if self._trained:
            out.print("training the ranker")
            logs = settings.home / "logs" / "learning.log"
            run_learning(settings.home, ["train", ALIGNED], _ignore, logs, TRAIN_TIMEOUT_S)
        return written

    @contextlib.contextmanager
    def measured(self) -> Iterator[Written]:
        """Counts what is written during the block; the result is complete at its end."""
        written, began = Written(), time.monotonic()
        events, before = self.handled(), self._bytes_written()
        yield written
        after = self._bytes_written()
        written.events, written.seconds = self.handled() - events, time.monotonic() - began
        written.log_bytes, written.broker_bytes = (after[n] - before[n] for n in WRITERS)

    @contextlib.contextmanager
    def crowd(self) -> Iterator[Written]:
        """The demo's crowd, in a thread, during the block."""
        over = threading.Event()
        crowd = Crowd(
            self._truth,
            self._past,
            self.stack.page,
            wiring.clock(self.stack.settings.clock),
            Tally(phase="soak"),
            clock_rate=self.stack.settings.clock.rate,
            api_key=next(iter(self.stack.settings.security.api_keys), None),
        )
        thread = threading.Thread(target=run_until, args=(crowd, over), name="crowd")
        with self.measured() as written:
            thread.start()
            try:
                yield written
            finally:
                over.set()
                thread.join(30.0)

    def _await_events(self, expected: int) -> None:
        deadline = time.monotonic() + LOG_TIMEOUT_S
        while self.handled() < 0.999 * expected and time.monotonic() < deadline:
            time.sleep(0.5)

    def _bytes_written(self) -> dict[str, int]:
        """0 for a server that is not of this stack."""
        pids = {status.name: status.pid for status in self.stack.status()}
        found = dict.fromkeys(WRITERS, 0)
        for name in WRITERS:
            with contextlib.suppress(psutil.Error, AttributeError):
                if (pid := pids.get(name)) is not None:
                    found[name] = int(psutil.Process(pid).io_counters().write_bytes)
        return found


def trickle(loaded: LoadedStack, seconds: float) -> Written:
    """One event a second over HTTP."""
    settings = loaded.stack.settings
    clock = wiring.clock(settings.clock)
    key = next(iter(settings.security.api_keys), "")
    with (
        loaded.measured() as written,
        httpx.Client(base_url=loaded.stack.page, trust_env=False) as http,
    ):
        for number in range(round(seconds)):
            event = {
                "event_id": f"trickle-{number}",
                "user_id": "u1",
                "kind": "play",
                "video_id": "v1",
                "event_time_ms": clock.now_ms(),
            }
            headers = {"X-API-Key": key} if key else {}
            http.post("/v1/events", json=event, headers=headers).raise_for_status()
            time.sleep(1.0)
    return written


def _ignore(_: object) -> None:
    """Progress is not shown."""


def _print_report(report: object) -> None:
    out.print(str(report))
