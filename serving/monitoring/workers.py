"""Metrics of several gateway processes as one: each writes its own to a file, a scrape adds up.

Knows Prometheus's text format and one folder. Does not know processes (`deploy.processes.workers`)
nor what is measured. A counter must not fall when a process ends, so the last file of one that
ended is kept, and of it what only grows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_ENDED = "ended-"
_GROWING = ("counter", "histogram", "summary")
# Every worker reads all records of a topic, so what they count of it is the same.
_SAME_IN_ALL = {"tidemill_events_seen", "tidemill_dead_letters_seen"}
_ADDED_GAUGES = {
    *("process_resident_memory_bytes", "process_virtual_memory_bytes", "process_open_fds"),
    "tidemill_served_slates",
}
_SMALLEST_GAUGES = {
    *("process_start_time_seconds", "process_max_fds"),
    *("tidemill_component_up", "tidemill_part_up", "tidemill_model_up", "tidemill_release_live"),
}


class Workers(Protocol):
    """The gateway's processes on one port, as one of them sees them."""

    def problem(self) -> str:
        """Which of them do not answer now; "" when all do."""

    def metrics(self, own: bytes) -> bytes:
        """The metrics of all: `own` and those that the others wrote last."""


class MetricFiles:
    """The files of one gateway's workers. Each worker writes its own, about every two seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def clear(self) -> None:
        """Drops what earlier processes left, at the gateway's start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)

    def write(self, number: int, text: bytes) -> None:
        partial = self._folder / f".{number}.writing"
        partial.write_bytes(text)
        os.replace(partial, self._path(number))

    def ended(self, number: int, pid: int) -> None:
        """Keeps the counts of a worker's process that ended."""
        if self._path(number).exists():
            os.replace(self._path(number), self._folder / f"{_ENDED}{number}-{pid}.prom")

    def added_up(self, number: int, own: bytes) -> bytes:
        """All workers' metrics: `own` of this one, and the last of the others."""
        files = (path for path in self._folder.glob("*.prom") if path != self._path(number))
        texts = {path.name: path.read_bytes() for path in files}
        ended = [text for name, text in texts.items() if name.startswith(_ENDED)]
        running = [text for name, text in texts.items() if not name.startswith(_ENDED)]
        return added_up([own, *running], ended)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.prom"


@dataclass
class _Family:
    """One metric of all processes: (sample name, labels) -> its value."""

    name: str
    about: str
    kind: str
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)

    def add(self, metric: Metric) -> None:
        combine = _rule(metric)
        for sample in metric.samples:
            key = (sample.name, tuple(sample.labels.items()))
            before = self.values.get(key)
            self.values[key] = sample.value if before is None else combine(before, sample.value)

    def metric(self) -> Metric:
        found = Metric(self.name, self.about, self.kind)
        for (name, labels), value in self.values.items():
            found.add_sample(name, dict(labels), value)
        return found


def _rule(metric: Metric) -> Callable[[float, float], float]:
    """How two processes' values of a metric become one."""
    if metric.name in _SAME_IN_ALL:
        return max
    if metric.type in _GROWING or metric.name in _ADDED_GAUGES:
        return float.__add__
    return min if metric.name in _SMALLEST_GAUGES or metric.name.endswith("_created") else max


def added_up(running: Iterable[bytes], ended: Iterable[bytes] = ()) -> bytes:
    """Metrics in text format of several processes as those of one; of ended ones what only grows."""
    families: dict[str, _Family] = {}
    for metric in (*_metrics(running), *_growing(_metrics(ended))):
        kept = families.setdefault(
            metric.name, _Family(metric.name, metric.documentation, metric.type)
        )
        kept.add(metric)
    return generate_latest(_Collected({name: each.metric() for name, each in families.items()}))


def _metrics(texts: Iterable[bytes]) -> Iterator[Metric]:
    for text in texts:
        yield from text_string_to_metric_families(text.decode())


def _growing(metrics: Iterable[Metric]) -> Iterator[Metric]:
    return (metric for metric in metrics if metric.type in _GROWING)


@dataclass(frozen=True)
class _Collected(Collector):
    """Metrics as `generate_latest` takes them."""

    metrics: Mapping[str, Metric]

    def collect(self) -> Iterable[Metric]:
        return self.metrics.values()
