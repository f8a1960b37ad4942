"""The metrics that every process of a stack exports, in prometheus_client's default registry.

Knows names, units, labels and buckets, by Prometheus's conventions: base units, `_total` for
counters, no ids as labels. Does not know how anything is measured. The gateway has metrics of its
own (`serving.monitoring.metrics`).
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_HANDLE_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_FRESH_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_GENERATED = re.compile(r"[-.][0-9a-f]{8}$")  # of a rebuild, or a hash of topic ids


class ArrayHistogram(Collector):
    """A histogram that counts whole arrays: prometheus_client's takes one value a call."""

    def __init__(
        self,
        name: str,
        about: str,
        labels: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._name, self._about, self._labels = name, about, tuple(labels)
        self._edges = np.array(buckets, float)
        self._bounds = [*map(floatToGoString, buckets), "+Inf"]
        self._counts: dict[tuple[str, ...], np.ndarray] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, values: np.ndarray, *labels: str) -> None:
        """Counts every value; `labels` in the order of the constructor's."""
        found = np.searchsorted(self._edges, values, side="left")  # a bound belongs to its bucket
        counts = np.bincount(found, minlength=len(self._bounds))
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + counts
            self._sums[labels] = self._sums.get(labels, 0.0) + float(np.sum(values))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._name, self._about, labels=self._labels)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._about, labels=self._labels)
        with self._lock:
            for labels, counts in self._counts.items():
                cumulated = np.cumsum(counts).astype(float).tolist()
                pairs = list(zip(self._bounds, cumulated, strict=True))
                family.add_metric(list(labels), pairs, self._sums[labels])
        yield family


EVENTS_HANDLED = Counter(
    "tidemill_events_handled_total", "Admitted events whose handler has returned.", ["topic"]
)
HANDLE_SECONDS = Histogram(
    "tidemill_handle_seconds",
    "Time in a batch's handler, one attempt.",
    ["topic"],
    buckets=_HANDLE_SECONDS,
)
RETRIES = Counter("tidemill_handle_retries_total", "Batches that were handled again.", ["topic"])
FEEDBACK_REFUSED = Counter(
    "tidemill_feedback_refused_total", "Events whose impression token was rejected.", ["cause"]
)
EVENTS_CAPPED = Counter(
    "tidemill_events_capped_total",
    "Events beyond what one user may contribute, marked as duplicates.",
    ["cause"],
)
DEAD_LETTERS = Counter(
    "tidemill_dead_letters_total", "Messages that were rejected.", ["topic", "cause"]
)
SET_ASIDE = Counter(
    "tidemill_set_aside_total", "Stored lines, files and batches that are skipped.", ["kind"]
)
CONSUMER_LAG = Gauge(
    "tidemill_consumer_lag_records",
    "Records that a consumer has yet to process, with markers of transactions.",
    ["group", "topic"],
)
FRESHNESS = ArrayHistogram(
    "tidemill_feature_freshness_seconds",
    "Age of an event when its row became readable, since it happened or since its admission.",
    ["entity", "since"],
    _FRESH_SECONDS,
)
LAST_FOLD = Gauge(
    "tidemill_last_fold_timestamp_seconds", "Wall time of the last live fold.", ["entity"]
)
CLOCK = Gauge("tidemill_clock_timestamp_seconds", "The process's wall clock as it was scraped.")
CLOCK.set_function(time.time)
LOG_DISK_FREE = Gauge(
    "tidemill_log_disk_free_bytes", "Space left on the event log's disk.", ["disk"]
)
LOG_DISK_SIZE = Gauge("tidemill_log_disk_size_bytes", "Size of the event log's disk.", ["disk"])


def watch_disk(path: Path, disk: str = "log") -> None:
    """Exports the space of the disk that holds `path`, or will hold it, at every scrape."""

    def usage() -> tuple[int, int]:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        found = shutil.disk_usage(existing)
        return found.free, found.total

    LOG_DISK_FREE.labels(disk).set_function(lambda: usage()[0])
    LOG_DISK_SIZE.labels(disk).set_function(lambda: usage()[1])


def base_group(group: str) -> str:
    """A consumer group's name without its hash of topic ids and the id of a rebuild, so that a
    label's values do not grow with each rebuild."""
    while (shorter := _GENERATED.sub("", group)) != group:
        group = shorter
    return group
