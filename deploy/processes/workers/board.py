"""What the gateway's workers know of each other: which runs, and when each last showed life.

Knows one page of memory that a process shares with those forked from it. Does not know what a
worker does. Each field has one writer.
"""

from __future__ import annotations

import mmap
import time

import numpy as np

_ROW = np.dtype([("pid", "i8"), ("started", "i8"), ("beat_s", "f8"), ("ready", "i8")])


class Board:
    """One row for each of `count` workers, numbered from 1."""

    def __init__(self, count: int) -> None:
        memory = mmap.mmap(-1, count * _ROW.itemsize)  # anonymous: shared with forked processes
        self._rows = np.frombuffer(memory, _ROW)
        self.numbers = range(1, count + 1)

    def begin(self, number: int, pid: int) -> None:
        """By the parent: this process is the worker from now on. It is ready once it beats."""
        row = self._rows[number - 1]
        row["ready"], row["beat_s"] = 0, time.monotonic()
        row["pid"], row["started"] = pid, row["started"] + 1

    def end(self, number: int) -> None:
        """By the parent: the worker's process has ended."""
        self._rows[number - 1]["pid"] = self._rows[number - 1]["ready"] = 0

    def beat(self, number: int) -> None:
        """By the worker: it answers."""
        row = self._rows[number - 1]
        row["beat_s"], row["ready"] = time.monotonic(), 1

    def pid(self, number: int) -> int:
        """0: no process."""
        return int(self._rows[number - 1]["pid"])

    def restarts(self, number: int) -> int:
        return max(0, int(self._rows[number - 1]["started"]) - 1)

    def silent_s(self, number: int) -> float:
        """Seconds since its last sign of life, or its start."""
        return time.monotonic() - float(self._rows[number - 1]["beat_s"])

    def ready(self, number: int) -> bool:
        return bool(self._rows[number - 1]["ready"])

    def problem(self) -> str:
        """Which workers do not answer; "" when all do."""
        away = [number for number in self.numbers if not self.ready(number)]
        return "; ".join(
            f"worker {number} of {len(self._rows)} is starting (restarts: {self.restarts(number)})"
            for number in away
        )
