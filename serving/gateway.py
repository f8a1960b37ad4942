"""A running gateway: its services, wired, with one start and one stop.

Knows how the parts of `serving` fit together. Does not know HTTP routes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from features.store import FeatureStore
from models.client import ModelClient
from models.experiments.definition import Experiment
from models.experiments.store import ExperimentStore
from models.monitoring.served_log import ServedLog
from serving.clients.breaker import GuardedModels, GuardedStore
from serving.clients.oidc import OidcConfig
from serving.clients.outbox import Outbox
from serving.clients.shared_replies import SharedReplies
from serving.console.feature_watch import FeatureWatch
from serving.console.hub import EventHub, LiveMessage
from serving.console.live import LiveReader
from serving.monitoring.canary import Canaries
from serving.monitoring.experiment import read_figures
from serving.monitoring.health import Health
from serving.monitoring.metrics import Metrics
from serving.monitoring.model_monitor import ModelMonitor
from serving.monitoring.served_features import PoolLogging, ServedFeatures
from serving.monitoring.surface_monitor import SurfaceMonitor
from serving.monitoring.workers import Workers
from serving.pipeline.query import Release
from serving.pipeline.runner import Deadlines
from serving.registry import SURFACES
from serving.stages.caps import Cap
from serving.stages.selectors import PlackettLuce
from serving.state.blocked_queries import BlockedQueries
from serving.state.catalogue import CatalogueFold, LiveCatalogue
from serving.state.likings import Likings
from serving.state.popularity import PopularityCache
from serving.state.reached import Reached
from serving.state.releases import ReleaseReader, ReleaseSwitch
from serving.state.replies import RecentReplies
from serving.state.rule_book import RuleBook
from serving.surfaces import StageDependencies, Surfaces
from streams.bus.contract import Bus
from streams.contract.bounds import future_limit_ms
from streams.contract.clock import Clock
from streams.ingest.admission import AdmissionLimits

SERVED, SKEW, POPULARITY = "served", "skew.json", "popularity.json"  # under `state_dir`
_STATS_EVERY_S = 1.0


@dataclass(frozen=True)
class GatewayConfig:
    """The settings of a gateway.

    impression_key: signs impression tokens; the feedback join verifies with the same key.
    api_keys: key -> scopes (events, recommend, admin).
    oidc: a provider whose tokens count beside keys; none by default.
    rate_limits: scope -> how often one caller may call; no limit by default.
    caps: author and provenance caps of the feed (`serving.stages.caps`); none by default.
    cors_origins: origins whose pages may call the API from a browser; none by default.
    admission: the limits of the ingest service, so that HTTP gives the same verdicts.
    drawn_share: share of feed replies ranked by drawn fusion weights.
    fresh_share, temperature: of the feed's selector (`serving.stages.selectors.PlackettLuce`).
    pools_share: of the feed requests whose whole scored pool is logged; none by default.
    experiment: of the settings, while no other runs on its surface; none by default.
    holdout_share: of the feed's users, whom no model ranks whatever experiment runs.
    experiments: file of the experiments, shared by the processes of a stack; None keeps them in
        memory.
    experiment_file: JSON with the arms' figures, written by the evaluation of the experiment and
        shown by the page; None where nothing evaluates it.
    serving_models: kind -> the model of it that serves, where it is not the one of the kind's name.
    state_dir: keeps the last good popularity over restarts and the served features of each
        slate; None keeps popularity in memory and logs no served features.
    blocked_queries: file of the queries that are taken down, shared by the processes of a
        stack; None keeps them in memory. rules: the same for standing rules.
    keeps_popularity: writes popularity to `state_dir`; of several workers, one does.
    """

    impression_key: bytes
    api_keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    oidc: OidcConfig | None = None
    rate_limits: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    cors_origins: Sequence[str] = ()
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    state_dir: Path | None = None
    blocked_queries: Path | None = None
    keeps_popularity: bool = True
    rules: Path | None = None
    deadlines: Deadlines = field(default_factory=Deadlines)
    caps: tuple[Cap, ...] = ()
    drawn_share: float = 0.0
    fresh_share: float = 0.03
    temperature: float = 0.05
    pools_share: float = 0.0
    experiment: Experiment | None = None
    holdout_share: float = 0.0
    experiments: Path | None = None
    experiment_file: Path | None = None
    serving_models: Mapping[str, str] = field(default_factory=dict)
    popularity_every_s: float = 3.0
    monitor_every_s: float = 0.8
    surfaces_every_s: float = 10.0

    def experiment_store(self) -> ExperimentStore:
        return ExperimentStore(self.experiments, self.experiment, self.holdout_share)


@dataclass(frozen=True)
class GatewayDependencies:
    """The services that a gateway is built on.

    catalogue: a fold to start from (`streams.catalogue.CatalogueLog(...).load()`); the
        gateway applies the topic `catalogue` to it.
    releases: `models.release.store.ReleaseStore`; None serves fallbacks only.
    replies: the replies to requests with an id, of all processes; None keeps to this one.
    updates: what `models.training.update_report.update_reports` tells of each model's updates.
    reached: state to start from, with its catalogue; None reads the topics from their start.
    workers: the gateway's processes on the same port; None where there is one.
    """

    bus: Bus
    store: FeatureStore
    models: ModelClient
    catalogue: CatalogueFold
    clock: Clock
    config: GatewayConfig
    releases: ReleaseReader | None = None
    replies: SharedReplies | None = None
    updates: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    reached: Reached | None = None
    workers: Workers | None = None


class Gateway:
    """The wired services. Call `start` before the first request and `stop` after the last."""

    def __init__(self, deps: GatewayDependencies) -> None:
        config, state_dir = deps.config, deps.config.state_dir
        self._deps, self.updates = deps, deps.updates
        self.clock, self.impression_key = deps.clock, config.impression_key
        self.admission, self.replies = config.admission, RecentReplies(deps.replies)
        self.metrics = Metrics(SURFACES, sum(astuple(config.deadlines)) / 1e3)
        self.store = GuardedStore(deps.store, observe=self.metrics.observe_store_read)
        self.models = GuardedModels(deps.models, observe=self.metrics.observe_model_call)
        reached = deps.reached or Reached(LiveCatalogue(deps.catalogue))
        self.catalogue, self.activity, self.hub = reached.catalogue, reached.activity, EventHub()
        self.popularity = PopularityCache(
            self.store,
            self.catalogue,
            deps.clock,
            state_dir / POPULARITY if state_dir else None,
            every_s=config.popularity_every_s,
            saves=config.keeps_popularity,
        )
        self.blocked, self.rules = BlockedQueries(config.blocked_queries), RuleBook(config.rules)
        self.likings = Likings(deps.releases.bundle_folder if deps.releases else None)
        self.releases = ReleaseSwitch(deps.releases, self._release_changed)
        self.experiments = config.experiment_store()
        self.surfaces = self._build_surfaces()
        self.outbox = Outbox(deps.bus)
        served_log = ServedLog(state_dir / SERVED) if state_dir else None
        draw = PlackettLuce(config.temperature, explore=config.fresh_share, caps=config.caps)
        self.served = ServedFeatures(served_log, pools=PoolLogging(config.pools_share, draw))
        self.skew_file = state_dir / SKEW if state_dir else None
        self.watch = FeatureWatch(self.store, deps.clock, self.hub)
        self.live = LiveReader(
            deps.bus,
            reached,
            self.metrics,
            self.hub,
            on_release=self.releases.refresh_soon,
            on_user_event=self.watch.notify,
            on_erasure=self.forget,
            latest_ms=partial(future_limit_ms, deps.clock, config.admission.future_ms),
        )
        self.model_monitor = ModelMonitor(
            deps.models,
            lambda: self.releases.current,
            Canaries(deps.releases, self.catalogue, deps.clock),
            lambda: self.health.check("models"),
            every_s=config.monitor_every_s,
        )
        self.surface_monitor = SurfaceMonitor(
            partial(self.surfaces.answer, explore=False),
            {name: spec.canary for name, spec in self.surfaces.specs.items()},
            lambda: self.catalogue.index().ids,
            every_s=config.surfaces_every_s,
        )
        self.health = self._build_health(deps.workers)
        self.stopping = threading.Event()

    def _build_health(self, workers: Workers | None) -> Health:
        return Health(
            {
                "broker": self._check_broker,
                "store": self._check_store,
                "models": self._check_models,
                "surfaces": lambda: _listed(self.surface_monitor.problems),
                "updates": self._check_updates,
            }
            | ({"workers": workers.problem} if workers else {})
        )

    def start(self) -> None:
        self.popularity.refresh()
        for service in (self.live, self.popularity, self.releases, self.model_monitor, self.watch):
            service.start()
        self.served.start()
        self.health.check_all()
        self.health.start()
        self.surface_monitor.start()
        threading.Thread(target=self._publish_stats, name="stats", daemon=True).start()

    def stop(self) -> None:
        self.stopping.set()
        self.health.stop()
        self.surface_monitor.stop()
        for service in (self.watch, self.model_monitor, self.releases, self.popularity, self.live):
            service.stop()
        self.outbox.close()
        self.served.stop()
        self.surfaces.close()

    def can_answer(self) -> bool:
        """False while the catalogue is empty and the broker down; all else has a fallback."""
        return bool(self.catalogue.index().ids) or self.health.is_up("broker")

    def forget(self, user_id: str) -> None:
        """Drops what this process keeps of the user, except replies, which their own mark ends."""
        self.surfaces.deps.last_users.forget(user_id)
        self.activity.forget(user_id)
        self.served.erase(user_id)

    def metrics_text(self) -> bytes:
        """This process's metrics as of now, in Prometheus's text format."""
        self.metrics.set_components(self.health.status())
        self.metrics.load_skew(self.skew_file)
        self.metrics.set_models(self.releases.current, self.model_monitor.problems)
        self.metrics.count_slates({"kept": self.served.kept, "dropped": self.served.dropped})
        return self.metrics.text()

    def all_metrics_text(self) -> bytes:
        """`metrics_text`, added up with that of the gateway's other processes."""
        own, workers = self.metrics_text(), self._deps.workers
        return workers.metrics(own) if workers else own

    def stats(self) -> dict[str, Any]:
        """Totals since the topics' start, and each component's status."""
        return {
            **self.live.totals,
            "users": len(self.activity),
            "videos": len(self.catalogue.index().ids),
            "now_ms": self.clock.now_ms(),
            "release": self.releases.current.release_id,
            "parts": {name: each["status"] for name, each in self.health.status().items()},
            "experiment": read_figures(self._deps.config.experiment_file),
        }

    def _build_surfaces(self) -> Surfaces:
        named = self.releases.named
        return Surfaces(
            self._stage_dependencies(), lambda: self.releases.current, named_release=named
        )

    def _stage_dependencies(self) -> StageDependencies:
        config = self._deps.config
        return StageDependencies(
            self.store,
            self.models,
            self.catalogue,
            self.popularity,
            self.clock,
            self.activity,
            deadlines=config.deadlines,
            blocked=self.blocked,
            rules=self.rules,
            caps=config.caps,
            drawn_share=config.drawn_share,
            fresh_share=config.fresh_share,
            temperature=config.temperature,
            experiments=self.experiments,
            likings=self.likings,
            serving_models=config.serving_models,
        )

    def _check_broker(self) -> str:
        return "" if self._deps.bus.healthy(1.0) else "the broker does not answer"

    def _check_store(self) -> str:
        return "" if self._deps.store.healthy() else "the feature store does not answer"

    def _check_models(self) -> str:
        if not self._deps.models.healthy():
            return "the model server does not answer"
        return _listed(self.model_monitor.problems)

    def _check_updates(self) -> str:
        found = {name: str(each.get("problem", "")) for name, each in self.updates().items()}
        return _listed({name: problem for name, problem in found.items() if problem})

    def _release_changed(self, release: Release) -> None:
        self.models.reset()
        self.likings.load(release)
        self.hub.publish(LiveMessage("release", asdict(release)))

    def _publish_stats(self) -> None:
        before, at = self.live.totals["events"], time.monotonic()
        while not self.stopping.wait(_STATS_EVERY_S):
            with contextlib.suppress(Exception):
                stats = self.stats()
                now = time.monotonic()
                stats["events_per_s"] = round((stats["events"] - before) / (now - at), 1)
                before, at = stats["events"], now
                self.hub.publish(LiveMessage("stats", stats))


def _listed(problems: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in problems.items())
