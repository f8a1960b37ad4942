"""An owner's stack in one process: what `tidemill up` wires, with messages handed over directly.

Knows the owner's folder, and the parts from ingest to releases. Does not know worlds. Store, models
and clock are those that ship for tests; ingest, log, feedback, training, releases and the feed's
pipeline are the real ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from deploy import wiring
from deploy.settings import Settings, load
from features.definitions import COUNTED, DEFINITIONS
from features.memory_store import MemoryFeatureStore
from models.ranking.ple.config import RankerConfig
from models.ranking.ple.recipe import RankerRecipe
from models.recipe import TrainingLog
from models.registry import REGISTRY
from models.release.in_process import InProcessClient
from models.release.promotion import Promoter
from models.release.store import ReleaseStore
from models.release.triton_repository import ModelRepository
from models.training.datasets import load_training_log
from models.training.update import Challenge, update_model
from models.training.update_finish import UpdateOutcome
from serving.pipeline.query import Release
from serving.pipeline.requests import Request
from serving.pipeline.runner import Deadlines
from serving.state.activity import Activity
from serving.state.catalogue import LiveCatalogue
from serving.state.likings import Likings
from serving.state.popularity import PopularityCache
from serving.surfaces import StageDependencies, Surfaces
from serving.surfaces.feed import FeedRequest
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.bus.polled import Record
from streams.catalogue import Catalogue, CatalogueLog, parse_catalogue_event
from streams.codec.decode import Rejection
from streams.codec.inputs import no_limit
from streams.contract.clock import ManualClock
from streams.contract.declaration import contract, declare
from streams.contract.topics import BEHAVIOUR, CATALOGUE, EVENTS_BY_USER
from streams.event_log import EventLog
from streams.feedback.store import FeedbackStore
from streams.ingest.admission import AdmissionLimits, admit
from streams.progress import no_progress

RANKER = "ranker"
KEY = bytes(range(32))
_WIDE = Deadlines(60_000.0, 60_000.0, 60_000.0, 60_000.0)  # nothing is timed here


@contextmanager
def declared_by(owner: Path, home: Path) -> Iterator[Settings]:
    """The owner's settings and features in force, as `tidemill up` puts them there."""
    before, folder = contract(), Path.cwd()
    os.chdir(owner)
    try:
        settings = load(home=home)
        wiring.declare(settings)
        yield settings
    finally:
        os.chdir(folder)
        declare(before)
        DEFINITIONS.add({})


@dataclass
class OwnersStack:
    """A stack under the declarations in force.

    Refused messages raise: a world sends none that the contract rejects.
    """

    settings: Settings
    clock: ManualClock
    store: MemoryFeatureStore = field(default_factory=MemoryFeatureStore)
    activity: Activity = field(default_factory=Activity)
    catalogue: Catalogue = field(default_factory=Catalogue)
    drawn_share: float = 0.3
    _sent: int = 0

    def __post_init__(self) -> None:
        settings = self.settings
        self.releases = ReleaseStore(settings.releases_dir)
        self.models = InProcessClient(settings.repository_dir)
        self._log = EventLog(settings.log_dir)
        self._feedback = FeedbackStore(
            settings.feedback_dir, key=KEY, windows_ms=settings.feedback.windows_ms
        )
        self._promoter = Promoter(
            self.releases,
            ModelRepository(settings.repository_dir),
            self.models,
            lambda _release: None,
        )
        live = LiveCatalogue(self.catalogue)
        self.popularity = PopularityCache(self.store, live, self.clock)
        likings = Likings(self.releases.bundle_folder)
        deps = StageDependencies(
            self.store,
            self.models,
            live,
            self.popularity,
            self.clock,
            self.activity,
            deadlines=_WIDE,
            drawn_share=self.drawn_share,
            likings=likings,
        )
        self.surfaces = Surfaces(deps, self._live, threads=4)

    def add_items(self, messages: Sequence[dict[str, Any]]) -> None:
        """Messages of the topic `catalogue`, into the log and the catalogue."""
        events = []
        for at, message in enumerate(messages):
            record = Record(CATALOGUE, 0, at, None, json.dumps(message).encode())
            event = parse_catalogue_event(record, no_limit())
            if isinstance(event, Rejection):
                raise ValueError(f"the contract rejects {message}: {event}")
            events.append(event)
            self.catalogue.apply(event)
        CatalogueLog(self.settings.log_dir).append(events)

    def send(self, messages: Sequence[dict[str, Any]]) -> None:
        """Messages of the topic `behaviour`: admitted, logged, joined and folded."""
        ordered = sorted(messages, key=lambda message: int(message["event_time_ms"]))
        values = [json.dumps(message).encode() for message in ordered]
        records = [
            Record(BEHAVIOUR, 0, at, None, value) for at, value in enumerate(values, self._sent)
        ]
        self._sent += len(records)
        admitted = admit(records, self.clock.now_ms(), AdmissionLimits())
        if admitted.refused:
            raise ValueError(f"admission refuses {admitted.refused[0]}")
        table = self.marked(admitted.table)
        delivery = Delivery(EVENTS_BY_USER, Stamp("t", 0, self._sent), table)
        self._log.append(delivery)
        self._feedback.join(delivery)
        self.fold(delivery)

    def marked(self, admitted: pa.Table) -> pa.Table:
        """The rows with duplicates marked; these worlds send none."""
        return admitted

    def fold(self, delivery: Delivery) -> None:
        """Adds a batch to the served state."""
        self.activity.fold(delivery.table)
        for entity in COUNTED:
            self.store.fold(entity, delivery.table, delivery.stamp)

    def training_log(self) -> TrainingLog:
        """All that has happened up to now."""
        self._log.flush()
        return load_training_log(
            self.settings.log_dir, self.settings.feedback_dir, self.clock.now_ms()
        )

    def train(self, config: RankerConfig, seed: int) -> int:
        """Trains the ranker and makes it live; returns its version."""
        staging, now_ms = self.releases.staging(RANKER), self.clock.now_ms()
        recipe = RankerRecipe(config)
        recipe.train(self.training_log(), staging, seed=seed, progress=no_progress)
        spec = REGISTRY[RANKER]
        bundle = self.releases.seal(
            RANKER,
            staging,
            runtime=spec.runtime,
            signature=spec.load_signature(),
            created_ms=now_ms,
        )
        release = self.releases.propose({RANKER: bundle.version}, created_ms=now_ms)
        self._promoter.promote(release, now_ms=now_ms)
        return bundle.version

    def update(self, challenge: Challenge, seed: int) -> UpdateOutcome:
        """One update of the ranker on the feedback that has matured."""
        return update_model(
            RANKER,
            self.training_log(),
            self.releases,
            self._promoter,
            now_ms=self.clock.now_ms(),
            seed=seed,
            challenge=challenge,
        )

    def feed(self, user_id: str, k: int, seed: int) -> dict[str, Any]:
        """A reply of the feed, as the gateway sends it."""
        request: Request = FeedRequest(user_id=user_id, k=k, seed=seed)
        return self.surfaces.reply(self.surfaces.answer(request), KEY)

    def close(self) -> None:
        self.surfaces.close()

    def _live(self) -> Release:
        current = self.releases.current()
        return Release() if current is None else Release(current.release_id, current.models)
