"""Fakes for tests, shipped for users' tests as well: models, and surfaces that need no server.

Knows the fake of every registered model (`models.registry`), which answers plausibly, repeatably
and with as many as asked, and the surfaces. Does not know the real models.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import numpy as np

from features.memory_store import MemoryFeatureStore
from models.batch import Answer
from models.client import ModelUnavailable
from models.registry import REGISTRY, Fake, streams
from models.signature import BadInput
from serving.state.catalogue import LiveCatalogue
from serving.state.popularity import PopularityCache
from serving.surfaces import StageDependencies, Surfaces
from streams.catalogue import Catalogue
from streams.contract.clock import WallClock
from streams.contract.events import CatalogueItem, ItemAdded

_ADDED_MS = 1_700_000_000_000

ANSWERS: dict[str, Fake] = {name: spec.load_fake() for name, spec in REGISTRY.items()}
"""Model -> its fake."""


class FakeModelClient:
    """Implements `models.client.ModelClient` with one function per model.

    `down` makes every call fail, and `breaks_after` every stream after so many parts.
    """

    def __init__(
        self, answers: Mapping[str, Fake] | None = None, versions: tuple[int, ...] = (1,)
    ) -> None:
        self.answers: dict[str, Fake] = dict(ANSWERS if answers is None else answers)
        self.loaded = dict.fromkeys(self.answers, versions)
        self.down = False
        self.breaks_after: int | None = None
        self.calls: list[tuple[str, int | None]] = []
        self.headers: list[dict[str, str]] = []
        self.reloaded: list[str] = []

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        del timeout_s
        self.calls.append((model, version))
        self.headers.append(dict(headers or {}))
        if self.down:
            raise ModelUnavailable("the fake is down")
        if version is not None and version not in self.versions(model):
            raise ModelUnavailable(f"{model} version {version} is not loaded")
        if model not in self.answers:
            raise ModelUnavailable(f"{model} is not loaded")
        return self.answers[model](inputs)

    def infer_many(
        self,
        model: str,
        requests: Sequence[Mapping[str, np.ndarray]],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> list[Answer]:
        answers: list[Answer] = []
        for request in requests:
            try:
                answers.append(
                    self.infer(
                        model, request, version=version, timeout_s=timeout_s, headers=headers
                    )
                )
            except BadInput as error:
                answers.append(error)
        return answers

    def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """A part for each result of a model that streams."""
        answer = self.infer(model, inputs, version=version, timeout_s=timeout_s, headers=headers)
        count = len(next(iter(answer.values()))) if streams(model) else 1
        for n in range(count):
            if n == self.breaks_after:
                raise ModelUnavailable("the fake's stream breaks")
            last = None if n == count - 1 else n + 1
            yield {name: tensor[n:last] for name, tensor in answer.items()} if count > 1 else answer

    def versions(self, model: str) -> tuple[int, ...]:
        return () if self.down else self.loaded.get(model, ())

    def load(self, model: str) -> None:
        if model not in self.answers:
            raise ModelUnavailable(f"{model} is not in the repository")
        self.reloaded.append(model)

    def reload(self, model: str) -> None:
        self.load(model)

    def healthy(self) -> bool:
        return not self.down


def fake_surfaces(items: Sequence[CatalogueItem]) -> Surfaces:
    """Every surface over these items, with a memory store and fake models, on the wall clock.

    `Surfaces.read_request`, `answer` and `reply` then work as behind the gateway. Call `close`.
    """
    catalogue = Catalogue()
    for item in items:
        catalogue.apply(ItemAdded(event_id=item.video_id, event_time_ms=_ADDED_MS, item=item))
    live, store, clock = LiveCatalogue(catalogue), MemoryFeatureStore(), WallClock()
    popularity = PopularityCache(store, live, clock)
    popularity.refresh()
    return Surfaces(StageDependencies(store, FakeModelClient(), live, popularity, clock))
