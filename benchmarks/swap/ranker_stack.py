"""A real stack with a trained ranker, its releases, and how its parts are restarted.

Knows the stack, the release store and process ids. Does not know load or bars.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.serve.gateway import RANKER, train
from deploy import wiring
from deploy.console import out
from deploy.demo.flow import await_page, events_handled
from deploy.services.process import wait_until
from deploy.settings import load
from deploy.simulation.history import History, history
from deploy.simulation.replay import replay
from deploy.stack import Stack
from models.release.bundle import BUNDLE_FILE
from models.release.promotion import successor
from models.release.store import ReleaseStore
from streams.progress import no_progress

LOG_TIMEOUT_S = 300.0
BACK_S = 240.0
HOUR_MS = 3_600_000


@dataclass
class RankerStack:
    """A stack in `home` with MovieLens-100K replayed and its ranker live. Use it as a context."""

    home: Path
    interactions: int

    def __enter__(self) -> Self:
        settings = load(home=self.home)
        end_ms = wiring.clock(settings.clock).now_ms() - HOUR_MS
        out.print("training the ranker", style="dim")
        train(self.home, end_ms, self.interactions)
        self.releases = ReleaseStore(settings.releases_dir)
        first = self.releases.propose({RANKER: 1}, created_ms=end_ms)
        self.releases.set_current(first.release_id, at_ms=end_ms)
        self.past: History = history(end_ms=end_ms)
        self.stack = Stack(settings, report=lambda report: out.print(str(report), highlight=False))
        try:
            self.settings = self.stack.start()
            await_page(self.stack.page)
            self._replay()
        except BaseException:
            self.stack.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.stop()

    def _replay(self) -> None:
        settings = self.settings
        bus = wiring.bus(settings)
        sent = replay(bus, self.past, settings.home, progress=_ignore, log_dir=settings.log_dir)
        wait_until(
            lambda: (events_handled(settings, "log-writer") or 0) >= 0.999 * sent, LOG_TIMEOUT_S
        )

    @property
    def users(self) -> list[str]:
        return list(self.past.frame["user_id"].unique().sort()[:200])

    def pid(self, part: str) -> int | None:
        """Of a running part, or of the ranker's process in Triton (`stub`); None while it has
        none."""
        if part == "stub":
            return self._stub()
        found = next((s for s in self.stack.status() if s.name == part), None)
        return found.pid if found is not None and found.phase == "running" else None

    def _stub(self) -> int | None:
        """Of the live version."""
        server, current = self.pid("triton"), self.releases.current()
        path = f"/{RANKER}/{current.models[RANKER]}/" if current else ""
        own = [each for each in _children(server) if any(path in word for word in _words(each))]
        # While it is replaced, the old process may still be there.
        return max(own, key=lambda each: each.create_time()).pid if own else None

    def restart(self, part: str) -> None:
        """An orderly restart; returns once the old process has ended and a new one may start."""
        if part == "stub":
            wiring.model_client(self.settings).reload(RANKER)
            return
        supervisor = self.stack._supervisor
        assert supervisor is not None, "the stack runs"
        supervisor.restart([part])

    def signal(self, part: str, number: int) -> int:
        """Sends a signal to the part's process; its id."""
        pid = self.pid(part)
        if pid is None:
            raise RuntimeError(f"{part} has no process")
        os.kill(pid, number)
        return pid

    def swap(self) -> None:
        """Seals the live ranker again as the next version and makes that live."""
        current = self.releases.current()
        assert current is not None, "a release is live"
        bundle = self.releases.bundle(RANKER, current.models[RANKER])
        staging = self.releases.staging(RANKER)
        shutil.copytree(
            bundle.path, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BUNDLE_FILE)
        )
        sealed = self.releases.seal(
            RANKER,
            staging,
            runtime=bundle.runtime,
            signature=bundle.signature,
            created_ms=self._now_ms(),
        )
        changed = successor(self.releases, {RANKER: sealed.version})
        release = self.releases.propose(changed, created_ms=self._now_ms())
        with wiring.promoter(self.settings, running=True) as promoter:
            promoter.promote(release, now_ms=self._now_ms(), progress=no_progress)

    def rollback(self) -> None:
        with wiring.promoter(self.settings, running=True) as promoter:
            promoter.rollback(now_ms=self._now_ms(), reason="a benchmark")

    def _now_ms(self) -> int:
        return wiring.clock(self.settings.clock).now_ms()


def _children(pid: int | None) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True) if pid else []
    except psutil.Error:
        return []


def _words(process: psutil.Process) -> list[str]:
    """Its command line; [] once it has ended, also while its parent has not noticed."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def await_true(condition: Callable[[], bool], what: str) -> None:
    """Raises RuntimeError when it does not come true within `BACK_S`."""
    until = time.monotonic() + BACK_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"not within {BACK_S:g} s: {what}")
        time.sleep(0.05)


def _ignore(_: object) -> None:
    """Progress is not shown."""
