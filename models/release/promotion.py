"""How a release goes live: version folders, load, self-test, then the switch. And back.

Knows the order of steps that keeps every request answered: nothing is unloaded before
the new release answers, and two releases stay loaded. Does not know how bundles are
trained or judged (`models.training.update`), nor which server answers (`models.client`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np

from models.client import ModelClient, ModelUnavailable
from models.recipe import Progress, Runtime
from models.registry import load, misfit
from models.release.bundle import (
    Bundle,
    Manifest,
    Quarantine,
    ReleaseError,
    ReleaseStore,
    read_canary,
)
from models.release.triton_repository import ModelRepository
from streams.bus.contract import Outgoing
from streams.contract.topics import MODELS_PUBLISHED

Announce = Callable[[Manifest], None]
"""Tells the world of a release that went live (topic `models.published`)."""

_LOG = logging.getLogger(__name__)
CANARY_TOLERANCE = 1e-4
_LOAD_TIMEOUT_S = 60.0


def quiet(_share: float, _what: str) -> None:
    """A `Progress` for callers that show none."""


class Promoter:
    """Puts releases live on one server, from one store."""

    def __init__(
        self,
        store: ReleaseStore,
        repository: ModelRepository,
        client: ModelClient,
        announce: Announce,
    ) -> None:
        self._store = store
        self._repository = repository
        self._client = client
        self._announce = announce

    def promote(self, manifest: Manifest, *, now_ms: int, progress: Progress = quiet) -> None:
        """Loads the release beside the live one, tests it, and makes it live.

        Raises `ReleaseError` when it does not load or answers otherwise than its bundle
        does in process; the live release then goes on and the new folders are gone.
        """
        try:
            self._bring_up(manifest, progress)
        except Exception as error:
            self._prune()
            raise ReleaseError(f"{manifest.release_id} stays down: {error}") from error
        self._store.set_current(manifest.release_id, at_ms=now_ms)
        self._announce(manifest)
        self._prune()
        progress(1.0, f"{manifest.release_id} is live")

    def rollback(self, *, now_ms: int, reason: str) -> Manifest:
        """Goes back to the release before; what the other served since is quarantined.

        Raises `ReleaseError` when there is none before.
        """
        bad = self._store.current()
        if bad is None or bad.parent is None:
            raise ReleaseError("there is no earlier release to go back to")
        since = self._store.live_since_ms()
        target = self._store.manifest(bad.parent)
        self.promote(target, now_ms=now_ms)
        self._store.quarantine(Quarantine(bad.release_id, since, now_ms, reason))
        return target

    def restore(self) -> None:
        """Makes the repository hold the live release and the one before, as after a start.

        Versions of another signature are left out and said: all versions of a model share
        one configuration, so one that does not fit would keep the others from loading.
        """
        for manifest in self._kept():
            for bundle in self._bundles(manifest):
                if why := misfit(bundle):
                    _LOG.warning("%s is not served: %s", manifest.release_id, why)
                    fit = set(self._repository.versions(bundle.model)) - {bundle.version}
                    self._repository.keep_only(bundle.model, fit)
                else:
                    self._repository.add(bundle)

    def _bring_up(self, manifest: Manifest, progress: Progress) -> None:
        bundles = self._bundles(manifest)
        if unfit := next(filter(None, map(misfit, bundles)), ""):
            raise ReleaseError(unfit)
        for done, bundle in enumerate(bundles):
            progress(done / len(bundles), f"loading {bundle.model} version {bundle.version}")
            if self._repository.add(bundle) or not self._is_loaded(bundle):
                self._client.load(bundle.model)
            self._await_version(bundle)
            self._self_test(bundle)

    def _is_loaded(self, bundle: Bundle) -> bool:
        return bundle.version in self._client.versions(bundle.model)

    def _await_version(self, bundle: Bundle) -> None:
        deadline = time.monotonic() + _LOAD_TIMEOUT_S
        while not self._is_loaded(bundle):
            if time.monotonic() > deadline:
                raise ModelUnavailable(f"{bundle.model} version {bundle.version} never got ready")
            time.sleep(0.05)

    def _self_test(self, bundle: Bundle) -> None:
        """One real request: the server must answer as the bundle does in process."""
        inputs = read_canary(bundle.path)
        if inputs is None:
            return
        runtime: type[Runtime] = load(bundle.runtime)
        expected = runtime(bundle.path).infer(inputs)
        served = self._client.infer(bundle.model, inputs, version=bundle.version, timeout_s=10.0)
        for name, tensor in expected.items():
            if not _same(tensor, served[name]):
                raise ReleaseError(f"{bundle.model} answers its canary with another {name!r}")

    def _prune(self) -> None:
        """Unloads what neither the live release nor the one before needs."""
        needed: dict[str, set[int]] = {}
        for manifest in self._kept():
            for model, version in manifest.models.items():
                needed.setdefault(model, set()).add(version)
        for model, versions in needed.items():
            if self._repository.keep_only(model, versions):
                self._client.load(model)

    def _kept(self) -> list[Manifest]:
        return [m for m in (self._store.previous(), self._store.current()) if m is not None]

    def _bundles(self, manifest: Manifest) -> list[Bundle]:
        return [self._store.bundle(model, v) for model, v in sorted(manifest.models.items())]


def announcement(manifest: Manifest) -> Outgoing:
    """The release as a message on `models.published`."""
    body = json.dumps(asdict(manifest)).encode()
    return Outgoing(MODELS_PUBLISHED, body, key=manifest.release_id.encode())


def successor(store: ReleaseStore, changed: Mapping[str, int]) -> dict[str, int]:
    """The live release's models with `changed` ones replaced."""
    current = store.current()
    return {**(current.models if current else {}), **changed}


def _same(expected: np.ndarray, served: np.ndarray) -> bool:
    if expected.shape != served.shape:
        return False
    if expected.dtype.kind == "f":
        return bool(np.allclose(expected, served, atol=CANARY_TOLERANCE, equal_nan=True))
    return bool(np.array_equal(expected, served))
