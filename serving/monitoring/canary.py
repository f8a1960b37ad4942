"""The canary of each live model: the one sealed with its bundle, else one made here.

Knows bundles' canaries and the registered models. Does not know which answers are right
(`models.release.canary`). A bundle of an older checkout has no canary: a valid request about
items of the catalogue takes its place, and only the form of the answer is checked.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np

from models.recipe import ServingExample
from models.registry import REGISTRY
from models.release.canary import Canary
from serving.pipeline.frames import absent_rows
from serving.state.catalogue import LiveCatalogue
from streams.contract.clock import Clock

_LOG = logging.getLogger(__name__)
_USER = "canary"
_CANDIDATES = 3


class CanaryStore(Protocol):
    """The part of `models.release.store.ReleaseStore` that this module needs."""

    def canary(self, model: str, version: int) -> Canary | None: ...

    def repair_lock(self, model: str, since_s: float) -> AbstractContextManager[bool]: ...


class Canaries:
    """Canaries by model and version. Thread safe."""

    def __init__(self, store: CanaryStore | None, catalogue: LiveCatalogue, clock: Clock) -> None:
        self._store, self._catalogue, self._clock = store, catalogue, clock
        self._sealed: dict[tuple[str, int], Canary | None] = {}

    def of(self, model: str, version: int) -> Canary | None:
        """The model's canary; None for an unknown model without one, or an empty catalogue."""
        key = (model, version)
        if key not in self._sealed:  # a sealed bundle never changes
            self._sealed[key] = self._read(model, version)
        sealed = self._sealed[key]
        if sealed is not None:
            return sealed
        request = live_requests(self._catalogue, self._clock.now_ms()).get(model)
        return None if request is None else Canary(request)

    def _read(self, model: str, version: int) -> Canary | None:
        try:
            return self._store.canary(model, version) if self._store else None
        except Exception as error:
            _LOG.warning("the canary of %s version %d cannot be read: %s", model, version, error)
            return None

    def repair_lock(self, model: str, since_s: float) -> AbstractContextManager[bool]:
        """Yields whether this process may reload the model; see `ReleaseStore.repair_lock`."""
        return nullcontext(True) if self._store is None else self._store.repair_lock(model, since_s)


def live_requests(catalogue: LiveCatalogue, now_ms: int) -> dict[str, dict[str, np.ndarray]]:
    """Requests of a user without history about the first items; {} for an empty catalogue."""
    found = [catalogue.get(item_id) for item_id in catalogue.index().ids[:_CANDIDATES]]
    items = [item for item in found if item is not None]
    if not items:
        return {}
    user = absent_rows("user", [_USER])
    rows = absent_rows("video", [item.video_id for item in items])
    authors = absent_rows("author", [item.author_id or "" for item in items])
    example = ServingExample(user, rows, authors, items, now_ms)
    return {name: spec.load_canary()(example) for name, spec in REGISTRY.items()}
