"""The gateway's Prometheus metrics.

Knows names, labels and buckets, by Prometheus's and OpenTelemetry's conventions. Does not know
how anything is measured. Each gateway has its own registry, so two gateways in one process do not
mix their counts; those of the process (`streams.metrics`) are exported with them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from serving.pipeline.query import Release, Slate

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.25, 2.5, 5.0)
# Names that are exported for one release more, and what replaces them.
RENAMED = {
    "tidemill_part_up": "tidemill_component_up",
    "tidemill_served_slates": "tidemill_slates_logged_total",
    "tidemill_events_refused_total": "tidemill_events_rejected_total",
}
_CAUSES = {
    400: "unreadable",
    401: "no_key",
    403: "no_scope",
    404: "not_found",
    405: "method",
    409: "conflict",
    413: "too_large",
    415: "encoding",
    422: "invalid",
    503: "unavailable",
}


class Metrics:
    """All metrics of one gateway. Counts of the surfaces begin at 0 with its start."""

    def __init__(self, surfaces: Iterable[str] = (), deadline_s: float = 0.0) -> None:
        """`deadline_s`: what the deadlines of a surface's stages add up to; 0: unknown."""
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._slates_counted: dict[str, int] = {}
        self._add_replies(tuple(surfaces), deadline_s)
        self._add_http()
        self._add_events()
        self._add_services()
        self._add_skew()
        self._add_renamed()

    def _add_replies(self, surfaces: tuple[str, ...], deadline_s: float) -> None:
        self.requests = self._counter("tidemill_requests", "Replies by surface.", "surface")
        self.request_seconds = self._histogram(
            "tidemill_request_seconds", "Seconds from request to reply.", "surface"
        )
        self.deadline_seconds = self._gauge(
            "tidemill_request_deadline_seconds", "The stages' deadlines, added up.", "surface"
        )
        self.stage_seconds = self._histogram(
            "tidemill_stage_seconds", "Seconds of one stage.", "surface", "stage"
        )
        self.fallbacks = self._counter(
            "tidemill_fallbacks", "Stages that failed open.", "surface", "stage"
        )
        self.degraded = self._counter(
            "tidemill_degraded_replies", "Replies with a fallback.", "surface"
        )
        self.exposures = self._counter(
            "tidemill_experiment_slates", "Slates by arm.", "surface", "experiment", "arm"
        )
        self.degraded_exposures = self._counter(
            "tidemill_experiment_degraded_slates",
            "Slates with a fallback by arm.",
            *("surface", "experiment", "arm"),
        )
        for surface in surfaces:
            for each in (self.requests, self.request_seconds, self.degraded):
                each.labels(surface)
            if deadline_s:
                self.deadline_seconds.labels(surface).set(deadline_s)

    def _add_http(self) -> None:
        # OpenTelemetry's name and labels, as Prometheus writes them.
        self.http_seconds = self._histogram(
            "http_server_request_duration_seconds",
            "Seconds of one HTTP request.",
            "http_request_method",
            "http_route",
            "http_response_status_code",
        )
        self.rejected = self._counter(
            "tidemill_requests_rejected",
            "Requests that were not answered, over HTTP or Kafka.",
            "route",
            "cause",
        )

    def _add_events(self) -> None:
        self.events_accepted = self._counter(
            "tidemill_events_accepted", "Events that the HTTP API wrote to the bus."
        )
        self.events_rejected = self._counter(
            "tidemill_events_rejected", "Events that the HTTP API rejected.", "cause"
        )
        self.events_seen = self._counter(
            "tidemill_events_seen", "Admitted events read from the bus."
        )
        self.dead_seen = self._counter(
            "tidemill_dead_letters_seen", "Dead-letter records read from the bus.", "cause"
        )
        self.slates_logged = self._counter(
            "tidemill_slates_logged",
            "Slates whose served features were logged, or dropped because the queue was full.",
            "outcome",
        )

    def _add_services(self) -> None:
        self.component_up = self._gauge(
            "tidemill_component_up", "1 while the component answers.", "component"
        )
        self.model_up = self._gauge(
            "tidemill_model_up", "1 while the live model answers its canary rightly.", "model"
        )
        self.release_live = self._gauge(
            "tidemill_release_live", "1 while a release is live, 0 while fallbacks answer."
        )
        self.model_call_seconds = self._histogram(
            "tidemill_model_call_seconds", "Seconds of one call of a model.", "model", "outcome"
        )
        self.store_read_seconds = self._histogram(
            "tidemill_store_read_seconds", "Seconds of one read of rows.", "entity", "outcome"
        )

    def _add_skew(self) -> None:
        self.feature_skew = self._gauge(
            "tidemill_feature_skew",
            "Served values that differ from the log's, in the last `features skew`.",
            "feature",
        )
        self.skew_ratio = self._gauge(
            "tidemill_feature_skew_ratio",
            "Share of served values that differ from the log's, in the last `features skew`.",
            "feature",
        )
        self.skew_checked = self._gauge(
            "tidemill_feature_skew_checked",
            "Slates and candidates that the last `features skew` compared.",
            "what",
        )
        self.skew_checked_at = self._gauge(
            "tidemill_feature_skew_check_timestamp_seconds", "Wall time of the last check."
        )

    def _add_renamed(self) -> None:
        def about(old: str) -> str:
            return f"Deprecated, removed in the next release: use {RENAMED[old]}."

        self.part_up = self._gauge("tidemill_part_up", about("tidemill_part_up"), "part")
        name = "tidemill_served_slates"
        self.served_slates = self._gauge(name, about(name), "outcome")
        name = "tidemill_events_refused_total"
        self.events_refused = self._counter(name, about(name))

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
        if slate.fallbacks:
            self.degraded.labels(surface).inc()
        if slate.query.arm is not None:
            arm = surface, slate.query.experiment or "", slate.query.arm
            self.exposures.labels(*arm).inc()
            self.degraded_exposures.labels(*arm).inc(bool(slate.fallbacks))

    def observe_http(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route`: the path's template, never a path that names an item or a user."""
        self.http_seconds.labels(method, route, str(status)).observe(seconds)
        if status >= 400:
            self.count_rejected(route, _CAUSES.get(status, f"status_{status}"))

    def count_rejected(self, route: str, cause: str) -> None:
        self.rejected.labels(route, cause).inc()

    def observe_model_call(self, model: str, outcome: str, seconds: float) -> None:
        self.model_call_seconds.labels(model, outcome).observe(seconds)

    def observe_store_read(self, entity: str, outcome: str, seconds: float) -> None:
        self.store_read_seconds.labels(entity, outcome).observe(seconds)

    def count_refused_events(self, causes: Iterable[str]) -> None:
        for cause in causes:
            self.events_rejected.labels(cause).inc()
            self.events_refused.inc()

    def count_slates(self, logged: Mapping[str, int]) -> None:
        """logged: outcome -> slates since the gateway's start."""
        with self._lock:
            for outcome, count in logged.items():
                self.served_slates.labels(outcome).set(count)
                new = count - self._slates_counted.get(outcome, 0)
                self.slates_logged.labels(outcome).inc(new)
                self._slates_counted[outcome] = count

    def set_components(self, health: Mapping[str, Mapping[str, Any]]) -> None:
        """health: `Health.status`."""
        for name, component in health.items():
            for gauge in (self.component_up, self.part_up):
                gauge.labels(name).set(component["status"] == "up")

    def set_models(self, release: Release, problems: Mapping[str, str]) -> None:
        """problems: `ModelMonitor.problems`."""
        self.release_live.set(bool(release.models))
        self.model_up.clear()
        for model in release.models:
            self.model_up.labels(model).set(model not in problems)

    def load_skew(self, path: Path | None) -> None:
        """Sets the skew gauges from the last check's file; keeps them where there is none."""
        try:
            found = orjson.loads(path.read_bytes()) if path is not None else None
            at_s = path.stat().st_mtime if path is not None else 0.0
        except (OSError, orjson.JSONDecodeError):
            return
        if found is None:
            return
        self.skew_checked_at.set(at_s)
        self.feature_skew.clear()
        self.skew_ratio.clear()
        compared = found.get("compared", {})  # a file of an earlier version lacks it
        for feature, differing in found["differing"].items():
            self.feature_skew.labels(feature).set(differing)
            if feature in compared:
                self.skew_ratio.labels(feature).set(differing / max(compared[feature], 1))
        for what in ("slates", "candidates"):
            self.skew_checked.labels(what).set(found[what])

    def text(self) -> bytes:
        """This gateway's metrics and the process's, in Prometheus's text format."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)
