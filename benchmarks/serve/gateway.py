"""A gateway on MovieLens-100K, in memory, with the real ranker in process.

Knows serving's parts and the replayed history. Does not know what is measured. The two generating
models are the shipped fakes: what is measured is the gateway, and their time is the model server's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from deploy.simulation.history import History, history
from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.offline.point_in_time.replay import to_event_table
from models.ranking.ple.config import RankerConfig
from models.ranking.ple.recipe import RankerRecipe
from models.ranking.ple.runtime import RankerRuntime
from models.recipe import TrainingLog
from models.registry import REGISTRY
from models.release.in_process import InProcessClient
from models.release.store import Manifest, ReleaseStore
from models.release.triton_repository import ModelRepository
from serving.fakes import FakeModelClient
from serving.gateway import Gateway, GatewayConfig, GatewayDependencies
from streams.bus.contract import Stamp
from streams.bus.memory import MemoryBus
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock
from streams.contract.events import ItemAdded
from streams.contract.topics import topic_specs
from streams.feedback.outcomes import FEEDBACK_SCHEMA
from streams.progress import no_progress

RANKER = "ranker"


def train(folder: Path, end_ms: int, interactions: int) -> None:
    """Trains the ranker on the history that ends at `end_ms`, and seals and loads it."""
    past = history(end_ms=end_ms)
    feedback = pl.from_arrow(FEEDBACK_SCHEMA.empty_table())
    assert isinstance(feedback, pl.DataFrame)
    log = TrainingLog(past.frame, past.items_frame, feedback, end_ms + 1)
    store = ReleaseStore(folder / "releases")
    staging = store.staging(RANKER)
    config = RankerConfig(interactions=interactions, slates=interactions)
    RankerRecipe(config).train(log, staging, seed=0, progress=no_progress)
    spec = REGISTRY[RANKER]
    bundle = store.seal(
        RANKER, staging, runtime=spec.runtime, signature=RankerRuntime.signature, created_ms=end_ms
    )
    ModelRepository(folder / "repository").add(bundle)


class _Releases(ReleaseStore):
    """The one release, without a gate."""

    def current(self) -> Manifest:
        return Manifest("r0001", {RANKER: 1, "queries": 1, "reactivation": 1}, created_ms=1)


class _Models(FakeModelClient):
    """The real ranker in process, fakes beside it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._ranker = InProcessClient(folder)
        self._ranker.load(RANKER)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        if model != RANKER:
            return self.answers[model](inputs)
        return self._ranker.infer(
            model, inputs, version=version, timeout_s=timeout_s, headers=headers
        )


@dataclass(frozen=True)
class Loaded:
    """What a gateway is built on, and who may ask it what."""

    deps: GatewayDependencies
    past: History
    users: Sequence[str]
    item_ids: Sequence[str]

    def fill(self, gateway: Gateway) -> None:
        """Gives the started gateway the activity that it would have read from the bus."""
        gateway.activity.fold(to_event_table(self.past.frame))


def loaded(folder: Path, end_ms: int) -> Loaded:
    """Everything behind a gateway, in memory, after the history that ends at `end_ms`."""
    past = history(end_ms=end_ms)
    store, bus, fold = MemoryFeatureStore(), MemoryBus(), Catalogue()
    bus.ensure_topics(topic_specs(1))
    events = to_event_table(past.frame)
    for entity in DEFINITIONS:
        store.fold(entity, events, Stamp("replayed", 0, 0))
    for item in past.items:
        fold.apply(ItemAdded(event_id=item.video_id, event_time_ms=item.created_ms, item=item))
    deps = GatewayDependencies(
        bus=bus,
        store=store,
        models=_Models(folder / "repository"),
        catalogue=fold,
        clock=WallClock(),
        config=GatewayConfig(impression_key=bytes(32), drawn_share=0.1, monitor_every_s=60.0),
        releases=_Releases(folder / "releases"),
    )
    users = sorted(past.frame["user_id"].unique().to_list())
    order = np.random.default_rng(0).permutation(len(users))
    popular = past.frame["video_id"].drop_nulls().value_counts(sort=True)["video_id"].to_list()
    return Loaded(deps, past, [users[row] for row in order], popular[:200])


def now_ms() -> int:
    return time.time_ns() // 1_000_000
