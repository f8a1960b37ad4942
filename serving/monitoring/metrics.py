"""The gateway's Prometheus metrics.

Knows names, labels and buckets. Does not know how anything is measured. Each gateway has
its own registry, so two gateways in one process do not mix their counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.pipeline.query import Slate

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """All metrics of one gateway. Counts of the surfaces begin at 0 with its start."""

    def __init__(self, surfaces: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("tidemill_requests", "Replies by surface.", "surface")
        self.request_seconds = self._histogram(
            "tidemill_request_seconds", "Seconds from request to reply.", "surface"
        )
        for surface in surfaces:
            self.requests.labels(surface)
            self.request_seconds.labels(surface)
        self.stage_seconds = self._histogram(
            "tidemill_stage_seconds", "Seconds of one stage.", "surface", "stage"
        )
        self.fallbacks = self._counter(
            "tidemill_fallbacks", "Stages that failed open.", "surface", "stage"
        )
        self.events_accepted = self._counter(
            "tidemill_events_accepted", "Events that the HTTP API wrote to the bus."
        )
        self.events_refused = self._counter(
            "tidemill_events_refused", "Events that the HTTP API rejected."
        )
        self.events_seen = self._counter(
            "tidemill_events_seen", "Admitted events read from the bus."
        )
        self.dead_seen = self._counter(
            "tidemill_dead_letters_seen", "Dead-letter records read from the bus.", "cause"
        )
        self.feature_skew = self._gauge(
            "tidemill_feature_skew",
            "Served values that differ from the log's, in the last `features skew`.",
            "feature",
        )
        self.skew_checked = self._gauge(
            "tidemill_feature_skew_checked",
            "Slates and candidates that the last `features skew` compared.",
            "what",
        )
        self.served_slates = self._gauge(
            "tidemill_served_slates",
            "Slates whose served features were logged, or dropped because the queue was full.",
            "outcome",
        )
        self.component_up = self._gauge(
            "tidemill_component_up", "1 while the component answers.", "component"
        )
        self.part_up = self._gauge(
            "tidemill_part_up",
            "Deprecated, removed in the next release: use tidemill_component_up.",
            "part",
        )

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(name, about, labels, buckets=_SECONDS, registry=self.registry)

    def observe_reply(self, slate: Slate, seconds: float) -> None:
        surface = slate.query.surface
        self.requests.labels(surface).inc()
        self.request_seconds.labels(surface).observe(seconds)
        for stage, took_ms in slate.stage_ms.items():
            self.stage_seconds.labels(surface, stage).observe(took_ms / 1e3)
        for fallback in slate.fallbacks:
            self.fallbacks.labels(surface, fallback.stage).inc()

    def set_components(self, health: Mapping[str, Mapping[str, Any]]) -> None:
        """health: `Health.status`."""
        for name, component in health.items():
            for gauge in (self.component_up, self.part_up):
                gauge.labels(name).set(component["status"] == "up")

    def load_skew(self, path: Path | None) -> None:
        """Sets the skew gauges from the last check's file; keeps them where there is none."""
        try:
            found = orjson.loads(path.read_bytes()) if path is not None else None
        except (OSError, orjson.JSONDecodeError):
            return
        if found is None:
            return
        self.feature_skew.clear()
        for feature, differing in found["differing"].items():
            self.feature_skew.labels(feature).set(differing)
        for what in ("slates", "candidates"):
            self.skew_checked.labels(what).set(found[what])

    def text(self) -> bytes:
        return generate_latest(self.registry)
