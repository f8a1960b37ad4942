"""Breakers: a part that does not answer is left alone for a moment.

Knows failures and time. Does not know what a part does. Without one, every request
would wait out the deadline of a hanging store; with one, a single request a second
tries it again, so recovery needs nobody's hand.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from features.store import EntityName, FeatureFrame, FeatureStore, StoreDown
from models.client import ModelClient, ModelUnavailable
from streams.bus.contract import Stamp


class Breaker:
    """Opens for `rest_s` after `failures` failures in a row; then one call may try. Thread safe."""

    def __init__(
        self,
        failures: int = 2,
        rest_s: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures, self._rest_s, self._monotonic = failures, rest_s, monotonic
        self._lock = threading.Lock()
        self._count = 0
        self._closed_until_s = 0.0

    def allows(self) -> bool:
        with self._lock:
            if self._count < self._failures:
                return True
            if self._monotonic() < self._closed_until_s:
                return False
            self._closed_until_s = self._monotonic() + self._rest_s  # this caller tries
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._count = 0

    def failed(self) -> None:
        with self._lock:
            self._count += 1
            self._closed_until_s = self._monotonic() + self._rest_s


class GuardedStore:
    """A feature store whose reads stop asking while it is down. Writes pass unguarded."""

    def __init__(self, store: FeatureStore, breaker: Breaker | None = None) -> None:
        self._store, self._breaker = store, breaker or Breaker()

    def fold(self, entity: EntityName, events: pa.Table, stamp: Stamp) -> int:
        return self._store.fold(entity, events, stamp)

    def read(self, entity: EntityName, ids: Sequence[str], now_ms: int) -> FeatureFrame:
        if not self._breaker.allows():
            raise StoreDown("the feature store did not answer lately; it is tried again shortly")
        try:
            frame = self._store.read(entity, ids, now_ms)
        except StoreDown:
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return frame

    def erase(self, user_id: str, at_ms: int | None = None) -> None:
        self._store.erase(user_id, at_ms)

    def healthy(self) -> bool:
        return self._store.healthy()


class GuardedModels:
    """A model client with one breaker per model."""

    def __init__(self, models: ModelClient) -> None:
        self._models = models
        self._breakers: dict[str, Breaker] = {}
        self._lock = threading.Lock()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, np.ndarray]:
        breaker = self._breaker(model)
        if not breaker.allows():
            raise ModelUnavailable(f"{model} did not answer lately; it is tried again shortly")
        try:
            out = self._models.infer(
                model, inputs, version=version, timeout_s=timeout_s, headers=headers
            )
        except ModelUnavailable:
            breaker.failed()
            raise
        breaker.succeeded()
        return out

    def versions(self, model: str) -> tuple[int, ...]:
        return self._models.versions(model)

    def load(self, model: str) -> None:
        self._models.load(model)
        self._breaker(model).succeeded()

    def healthy(self) -> bool:
        return self._models.healthy()

    def reset(self) -> None:
        """A new release went live: whatever failed before deserves a try now."""
        with self._lock:
            self._breakers.clear()

    def _breaker(self, model: str) -> Breaker:
        with self._lock:
            return self._breakers.setdefault(model, Breaker())
