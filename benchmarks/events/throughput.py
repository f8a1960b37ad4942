"""Throughput from a preloaded topic to rows and files, with CPU by stage.

Knows when a run begins and ends and how CPU is attributed to stages. The clock starts when
the ingest process is ready, and stops when every handler has returned for every event. The
imports of the ingest process are not counted; the other processes are warm. Does not know
the bars.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.events.cluster import INGEST, Cluster, Cpu, await_handled
from benchmarks.events.source import Source, Written, preload
from streams.contract.topics import ENTITY_TOPIC, EVENTS_BY_USER

WARM_EVENTS = 30_000


@dataclass(frozen=True)
class PathRun:
    """One run: events, seconds, and seconds of CPU per stage."""

    written: Written
    seconds: float
    cpu: Cpu

    @property
    def per_s(self) -> float:
        return self.written.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        """µs of CPU an event, broker and store included."""
        return sum(self.cpu.values()) / self.written.messages * 1e6

    def stage_us(self) -> dict[str, float]:
        used = sorted(self.cpu.items(), key=lambda item: -item[1])
        return {stage: seconds / self.written.messages * 1e6 for stage, seconds in used}


@dataclass
class EventPath:
    """The processes of one form of the path, and the events sent to them so far."""

    cluster: Cluster
    names: Sequence[str]
    source: Source
    report: Callable[[str], None]
    sent: Written = field(default_factory=Written)

    @property
    def ingest(self) -> str:
        return next(name for name in self.names if name in INGEST)

    def start(self) -> float:
        """Starts all processes and warms them up; returns the events a second of the warm-up."""
        self.cluster.start(self.ingest)  # creates the topics
        for name in self.names:
            if name != self.ingest:
                self.cluster.start(name)
        self._send_and_wait(WARM_EVENTS // 6, 120)
        self._await_idle()
        return WARM_EVENTS / self._send_and_wait(WARM_EVENTS, 240)

    def run(self, n: int, timeout_s: float, before_start: Callable[[], None]) -> PathRun:
        """Preloads `n` events while ingest is stopped, then starts it.

        `before_start` runs on the filled topic: the baselines read the same events.
        """
        self.cluster.stop(self.ingest)
        written = self._send(n)
        before_start()
        before = self.cluster.cpu()
        self.cluster.start(self.ingest)
        seconds = await_handled(self.cluster, self.wanted(), timeout_s)
        after = self.cluster.cpu()
        used = {stage: after[stage] - before.get(stage, 0.0) for stage in after}
        used.pop(f"{self.ingest}: rest", None)  # its imports
        return PathRun(written, seconds, used)

    def wanted(self) -> dict[str, Mapping[str, int]]:
        user = {EVENTS_BY_USER: self.sent.expected(EVENTS_BY_USER)}
        every = {topic: self.sent.expected(topic) for topic in ENTITY_TOPIC.values()}
        return {n: every if n == "features" else user for n in self.names if n != self.ingest}

    def _send(self, n: int) -> Written:
        written = preload(self.cluster.servers, self.source, n, self.report)
        self.sent = self.sent.plus(written)
        return written

    def _send_and_wait(self, n: int, timeout_s: float) -> float:
        self._send(n)
        return await_handled(self.cluster, self.wanted(), timeout_s)

    def _await_idle(self, timeout_s: float = 30.0) -> None:
        """Waits until background work (Feast's registry) no longer uses CPU."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            before = self.cluster.cpu()
            time.sleep(1.0)
            rest = [after - before.get(stage, 0.0) for stage, after in self.cluster.cpu().items()]
            if max(rest) < 0.2:
                return
