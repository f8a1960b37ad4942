"""Resident memory of a stack's processes over time.

Knows process ids and resident sets. Does not know what the processes do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

from deploy.stack import Stack

Sample = tuple[float, float]  # seconds since the load began, MB


@dataclass
class MemorySamples:
    """Each process's resident memory with its children's (Triton's stubs), in MB."""

    stack: Stack
    by_process: dict[str, list[Sample]] = field(default_factory=dict)
    count: int = 0

    def take(self, at_s: float) -> None:
        self.count += 1
        for status in self.stack.status():
            if status.pid is not None and (size := _resident_mb(status.pid)):
                self.by_process.setdefault(status.name, []).append((at_s, size))

    def line(self) -> str:
        """The newest sample of every process."""
        newest = {name: series[-1] for name, series in self.by_process.items()}
        at_s = max((at_s for at_s, _ in newest.values()), default=0.0)
        sizes = ", ".join(f"{name} {size:.0f}" for name, (_, size) in newest.items())
        return f"{at_s:5.0f} s, MB: {sizes}"


def _resident_mb(pid: int) -> float:
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
    return total / 1e6


def growth_per_hour(series: Sequence[Sample]) -> float:
    """Slope of the least-squares line as a share of the first value; 0 for fewer than three."""
    if len(series) < 3:
        return 0.0
    at_s, size = np.asarray(series, dtype=np.float64).T
    slope_per_s = np.polyfit(at_s - at_s[0], size, 1)[0]
    return float(slope_per_s * 3600 / size[0])
