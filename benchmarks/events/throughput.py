"""Events through the whole path, from a preloaded topic to rows and files, stage by stage.

Knows when a run begins and ends and how CPU is put down to stages. The clock starts when
the door has said that it is set up, and ends when every handler has returned for every
event. The door's imports are not counted; the other parts are warm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.events.processes import DOORS, Cpu, Mill, await_handled
from benchmarks.events.source import Progress, Source, Written, preload
from streams.contract.topics import ENTITY_TOPIC, EVENTS_BY_USER

WARM_EVENTS = 30_000


@dataclass(frozen=True)
class Passed:
    """One run: what went through, in how long, and seconds of CPU per stage."""

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
class Path:
    """The processes of one form of the path, and what they have been sent so far."""

    mill: Mill
    names: Sequence[str]
    source: Source
    progress: Progress
    sent: Written = field(default_factory=Written)

    @property
    def door(self) -> str:
        return next(name for name in self.names if name in DOORS)

    def start(self) -> float:
        """Starts all, sends a little through, and returns the events a second of that."""
        self.mill.start(self.door)  # makes the topics
        for name in self.names:
            if name != self.door:
                self.mill.start(name)
        self._through(WARM_EVENTS // 6, 120)
        self._until_calm()
        return WARM_EVENTS / self._through(WARM_EVENTS, 240)

    def passed(self, n: int, timeout_s: float, meanwhile: Callable[[], None]) -> Passed:
        """Preloads `n` events while the door is shut, then opens it.

        `meanwhile` runs on the filled topic before that: other readers of the same work.
        """
        self.mill.stop(self.door)
        written = self._send(n)
        meanwhile()
        before = self.mill.cpu()
        self.mill.start(self.door)
        seconds = await_handled(self.mill, self.wanted(), timeout_s)
        after = self.mill.cpu()
        used = {stage: after[stage] - before.get(stage, 0.0) for stage in after}
        used.pop(f"{self.door}: rest", None)  # its imports
        return Passed(written, seconds, used)

    def wanted(self) -> dict[str, Mapping[str, int]]:
        user = {EVENTS_BY_USER: self.sent.expected(EVENTS_BY_USER)}
        every = {topic: self.sent.expected(topic) for topic in ENTITY_TOPIC.values()}
        return {n: every if n == "features" else user for n in self.names if n != self.door}

    def _send(self, n: int) -> Written:
        written = preload(self.mill.servers, self.source, n, self.progress)
        self.sent = self.sent.plus(written)
        return written

    def _through(self, n: int, timeout_s: float) -> float:
        self._send(n)
        return await_handled(self.mill, self.wanted(), timeout_s)

    def _until_calm(self, timeout_s: float = 30.0) -> None:
        """Until what starts beside the loops (Feast's registry) has started."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            before = self.mill.cpu()
            time.sleep(1.0)
            rest = [after - before.get(stage, 0.0) for stage, after in self.mill.cpu().items()]
            if max(rest) < 0.2:
                return
