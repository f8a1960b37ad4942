"""What a running gateway holds: its parts, wired, with one start and one stop.

Knows how the pieces of `serving` fit together. Does not know HTTP routes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from fastapi import Request

from features.store import FeatureStore
from models.client import ModelClient
from models.monitoring.served_log import ServedLog
from serving.clients.breaker import GuardedModels, GuardedStore
from serving.clients.outbox import Outbox
from serving.console.feature_watch import FeatureWatch
from serving.console.live import Live, Message
from serving.http.auth import Keys
from serving.monitoring.canary import canaries
from serving.monitoring.health import Health
from serving.monitoring.metrics import Metrics
from serving.monitoring.served_features import ServedFeatures
from serving.pipeline.query import Release
from serving.pipeline.runner import Deadlines
from serving.pipeline.surfaces import Parts, Surfaces
from serving.stages.caps import Cap
from serving.state.activity import Activity
from serving.state.catalogue import CatalogueFold, LiveCatalogue
from serving.state.last_rows import Snapshot
from serving.state.releases import ReleaseBook, ReleaseSwitch, Watchdog
from streams.bus.contract import Bus
from streams.contract.clock import Clock

SERVED, SKEW = "served", "skew.json"  # under a gateway's state_dir


@dataclass(frozen=True)
class Dependencies:
    """Everything that a gateway is given.

    catalogue: a fold to start from (`streams.catalogue.CatalogueLog(...).load()`); the
        gateway keeps it live from the topic `catalogue`.
    releases: `models.release.bundle.ReleaseStore`; None serves fallbacks only.
    impression_key: signs impression tokens; the feedback join checks with the same.
    api_keys: key -> scopes (events, recommend, admin).
    caps: author and provenance caps of the feed (`serving.stages.caps`); none by default.
    drawn_share: of the feed's answers, those ranked by fusion weights that are drawn.
    state_dir: where the last good popularity is kept over restarts, and what the ranker saw
        of each slate; None: memory only, and nothing of slates.
    """

    bus: Bus
    store: FeatureStore
    models: ModelClient
    catalogue: CatalogueFold
    clock: Clock
    impression_key: bytes
    releases: ReleaseBook | None = None
    api_keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    host: str = "127.0.0.1"
    state_dir: Path | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    caps: tuple[Cap, ...] = ()
    drawn_share: float = 0.0
    snapshot_every_s: float = 3.0
    watchdog_every_s: float = 5.0


class Gateway:
    """The wired parts. `start` before the first request, `stop` after the last."""

    def __init__(self, deps: Dependencies) -> None:
        self.clock, self.impression_key = deps.clock, deps.impression_key
        self.store, self.models = GuardedStore(deps.store), GuardedModels(deps.models)
        self.catalogue = LiveCatalogue(deps.catalogue)
        self.activity, self.metrics = Activity(), Metrics()
        self.keys = Keys(deps.api_keys, deps.host)
        path = deps.state_dir / "popularity.json" if deps.state_dir else None
        self.snapshot = Snapshot(
            self.store, self.catalogue, deps.clock, path, every_s=deps.snapshot_every_s
        )
        self.releases = ReleaseSwitch(deps.releases, self._release_changed)
        parts = Parts(
            self.store,
            self.models,
            self.catalogue,
            self.snapshot,
            deps.clock,
            self.activity,
            deadlines=deps.deadlines,
            caps=deps.caps,
            drawn_share=deps.drawn_share,
        )
        self.surfaces = Surfaces(parts, lambda: self.releases.now)
        self.outbox = Outbox(deps.bus)
        self.served = ServedFeatures(ServedLog(deps.state_dir / SERVED) if deps.state_dir else None)
        self.skew_file = deps.state_dir / SKEW if deps.state_dir else None
        self.live = Live(
            deps.bus,
            self.catalogue,
            self.activity,
            self.metrics,
            on_release=self.releases.nudge,
            on_user_event=lambda user_id: self.watch.poke(user_id),
        )
        self.watch = FeatureWatch(self.store, deps.clock, self.live)
        self.watchdog = Watchdog(
            deps.models,
            lambda: self.releases.now,
            lambda: canaries(self.catalogue, deps.clock.now_ms()),
            every_s=deps.watchdog_every_s,
        )
        self.health = Health(self._checks(deps))
        self.stopping = threading.Event()

    def start(self) -> None:
        self.snapshot.refresh()
        for part in (self.live, self.snapshot, self.releases, self.watchdog, self.watch):
            part.start()
        self.served.start()
        self.health.ask()
        self.health.start()
        threading.Thread(target=self._tell_stats, name="stats", daemon=True).start()

    def stop(self) -> None:
        self.stopping.set()
        self.health.stop()
        for part in (self.watch, self.watchdog, self.releases, self.snapshot, self.live):
            part.stop()
        self.outbox.close()
        self.served.stop()
        self.surfaces.close()

    def can_answer(self) -> bool:
        """An answer needs a catalogue; everything else has a fallback."""
        return bool(self.catalogue.index().ids) or self.health.up("broker")

    def stats(self) -> dict[str, Any]:
        """Totals since the topic's start, and which parts are down."""
        parts = self.health.now()
        return {
            **self.live.totals,
            "users": len(self.activity),
            "videos": len(self.catalogue.index().ids),
            "now_ms": self.clock.now_ms(),
            "release": self.releases.now.release_id,
            "parts": {name: part["status"] for name, part in parts.items()},
        }

    def _checks(self, deps: Dependencies) -> dict[str, Callable[[], str]]:
        def models() -> str:
            if not deps.models.healthy():
                return "the model server does not answer"
            silent = [f"{name}: {why}" for name, why in self.watchdog.state.items()]
            return "; ".join(silent)

        return {
            "broker": lambda: "" if deps.bus.healthy(1.0) else "the broker does not answer",
            "store": lambda: "" if deps.store.healthy() else "the feature store does not answer",
            "models": models,
        }

    def _release_changed(self, release: Release) -> None:
        self.models.reset()
        if hasattr(self, "live"):
            self.live.publish(Message("release", asdict(release)))

    def _tell_stats(self) -> None:
        before, at = self.live.totals["events"], time.monotonic()
        while not self.stopping.wait(1.0):
            with contextlib.suppress(Exception):
                stats = self.stats()
                now = time.monotonic()
                stats["events_per_s"] = round((stats["events"] - before) / (now - at), 1)
                before, at = stats["events"], now
                self.live.publish(Message("stats", stats))


def gateway_of(request: Request) -> Gateway:
    """The running gateway behind a request."""
    return cast(Gateway, request.app.state.gateway)
