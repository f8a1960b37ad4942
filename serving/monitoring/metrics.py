"""What the gateway counts, for Prometheus.

Knows names, labels and buckets. Each gateway has a registry of its own, so that two in
one process do not meet.
"""

from __future__ import annotations

from pathlib import Path

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.pipeline.query import Slate

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tidemill_requests", "Answers by surface.", ["surface"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "tidemill_request_seconds",
            "Time from request to answer.",
            ["surface"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "tidemill_stage_seconds",
            "Time of one stage.",
            ["surface", "stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.fallbacks = Counter(
            "tidemill_fallbacks",
            "Stages that failed open.",
            ["surface", "stage"],
            registry=self.registry,
        )
        self.events_accepted = Counter(
            "tidemill_events_accepted", "Events handed to the bus.", registry=self.registry
        )
        self.events_refused = Counter(
            "tidemill_events_refused", "Events refused at the door.", registry=self.registry
        )
        self.events_seen = Counter(
            "tidemill_events_seen", "Admitted events seen on the bus.", registry=self.registry
        )
        self.dead_seen = Counter(
            "tidemill_dead_letters_seen", "Dead letters seen.", ["cause"], registry=self.registry
        )
        self.feature_skew = Gauge(
            "tidemill_feature_skew",
            "Served values that differed from the log's own in the last `features skew`.",
            ["feature"],
            registry=self.registry,
        )
        self.skew_checked = Gauge(
            "tidemill_feature_skew_checked",
            "Slates and candidates that the last `features skew` compared.",
            ["what"],
            registry=self.registry,
        )
        self.served_kept = Gauge(
            "tidemill_served_slates",
            "Slates whose features were logged as served, or dropped at a full queue.",
            ["outcome"],
            registry=self.registry,
        )
        self.part_up = Gauge(
            "tidemill_part_up", "1 when the part answers.", ["part"], registry=self.registry
        )

    def answered(self, slate: Slate, seconds: float) -> None:
        surface = slate.query.surface
        self.requests.labels(surface).inc()
        self.request_seconds.labels(surface).observe(seconds)
        for stage, took_ms in slate.stage_ms.items():
            self.stage_seconds.labels(surface, stage).observe(took_ms / 1e3)
        for fallback in slate.fallbacks:
            self.fallbacks.labels(surface, fallback.stage).inc()

    def skew(self, path: Path | None) -> None:
        """What the last skew check wrote; nothing where none ran."""
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
