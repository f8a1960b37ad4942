"""Promotion and rollback: version folders, load, self-test, then the switch.

Knows the order of steps that keeps every request answered: nothing is unloaded before
the new release answers, and two releases stay loaded. Does not know how bundles are
trained or gated (`models.training.update`), nor which server answers (`models.client`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace

from models.client import ModelClient, ModelUnavailable
from models.recipe import Runtime
from models.registry import import_attribute, streams
from models.release.bundle import Bundle, ReleaseError, signature_mismatch
from models.release.canary import Canary, read_canary, wrong_answer
from models.release.store import Manifest, Quarantine, ReleaseStore
from models.release.triton_repository import ModelRepository
from models.stream import joined
from streams.bus.contract import Outgoing
from streams.contract.topics import MODELS_PUBLISHED
from streams.progress import ProgressCallback, no_progress

Announce = Callable[[Manifest], None]
"""Publishes a release that went live (topic `models.published`)."""

_LOG = logging.getLogger(__name__)
_LOAD_TIMEOUT_S = 60.0
_SELF_TEST_S = 10.0  # a model's first answer is slower than the next ones


class Promoter:
    """Makes releases of one store live on one server."""

    def __init__(
        self,
        store: ReleaseStore,
        repository: ModelRepository,
        client: ModelClient,
        announce: Announce,
        beside: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """beside: releases that experiments serve beside the live one; they stay loaded."""
        self._store = store
        self._repository = repository
        self._client = client
        self._announce = announce
        self._beside = beside

    def promote(
        self, manifest: Manifest, *, now_ms: int, progress: ProgressCallback = no_progress
    ) -> None:
        """Loads the release beside the live one, tests it, and makes it live.

        Raises:
            ReleaseError: it does not load, or its answer differs from its bundle's in
                process. The live release keeps serving, and the new folders are removed.
        """
        try:
            self._bring_up(manifest, progress)
        except Exception as error:
            self.prune()
            raise ReleaseError(f"{manifest.release_id} stays down: {error}") from error
        self._store.set_current(manifest.release_id, at_ms=now_ms)
        self._announce(manifest)
        self.prune()
        progress(1.0, f"{manifest.release_id} is live")

    def stand_by(self, manifest: Manifest, *, progress: ProgressCallback = no_progress) -> None:
        """Loads and tests a release beside the live one, for an experiment that will serve it.

        Call under `ReleaseStore.making_release`, and start the experiment before that ends: what
        no experiment serves is unloaded with the next promotion.

        Raises:
            ReleaseError: it does not load, or answers differently than in process.
        """
        try:
            self._bring_up(manifest, progress)
        except Exception as error:
            self.prune()
            raise ReleaseError(f"{manifest.release_id} stays down: {error}") from error

    def rollback(self, *, now_ms: int, reason: str) -> Manifest:
        """Makes the parent release live again and quarantines what the bad one served.

        Raises `ReleaseError` when there is no parent.
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
        """Makes the repository hold the live release and the previous one; called at start.

        Versions of another signature are left out with a warning: all versions of a model
        share one configuration, so one that does not fit would keep the others from loading.
        """
        self._repository.refresh_backends()
        for manifest in self._kept():
            for bundle in self._bundles(manifest):
                if why := signature_mismatch(bundle):
                    _LOG.warning("%s is not served: %s", manifest.release_id, why)
                    others = set(self._repository.versions(bundle.model)) - {bundle.version}
                    self._repository.keep_only(bundle.model, others)
                else:
                    self._repository.add(bundle)

    def _bring_up(self, manifest: Manifest, progress: ProgressCallback) -> None:
        bundles = self._bundles(manifest)
        if mismatch := next(filter(None, map(signature_mismatch, bundles)), ""):
            raise ReleaseError(mismatch)
        for done, bundle in enumerate(bundles):
            progress(done / len(bundles), f"loading {bundle.model} version {bundle.version}")
            if self._repository.add(bundle) or not self._is_loaded(bundle):
                self._load(bundle)
                self._self_test(bundle)
                continue
            try:
                self._self_test(bundle)
            except (ModelUnavailable, ReleaseError) as error:
                # Triton lists a version as ready although its process died since.
                _LOG.warning("loading a version again that does not answer: %s", error)
                self._repository.mark_changed(bundle)
                self._load(bundle)
                self._self_test(bundle)

    def _load(self, bundle: Bundle) -> None:
        self._client.load(bundle.model)
        self._await_version(bundle)

    def _is_loaded(self, bundle: Bundle) -> bool:
        return bundle.version in self._client.versions(bundle.model)

    def _await_version(self, bundle: Bundle) -> None:
        deadline = time.monotonic() + _LOAD_TIMEOUT_S
        while not self._is_loaded(bundle):
            if time.monotonic() > deadline:
                raise ModelUnavailable(
                    f"{bundle.model} version {bundle.version} was not ready in {_LOAD_TIMEOUT_S} s"
                )
            time.sleep(0.05)

    def _self_test(self, bundle: Bundle) -> None:
        """Sends the canary: the server must answer as the bundle does. Raises `ReleaseError`."""
        canary = read_canary(bundle.path, bundle.runtime)
        if canary is None:
            return
        if canary.answer is None:
            runtime: type[Runtime] = import_attribute(bundle.runtime)
            canary = replace(canary, answer=runtime(bundle.path).infer(canary.request))
        served = self._client.infer(
            bundle.model, canary.request, version=bundle.version, timeout_s=_SELF_TEST_S
        )
        if why := wrong_answer(bundle.model, canary, served) or self._wrong_stream(bundle, canary):
            raise ReleaseError(f"{bundle.model} version {bundle.version} {why}")

    def _wrong_stream(self, bundle: Bundle, canary: Canary) -> str:
        """Why the parts of a streamed answer are not its bundle's; "" where they are."""
        if not streams(bundle.model):
            return ""
        parts = self._client.infer_stream(
            bundle.model, canary.request, version=bundle.version, timeout_s=_SELF_TEST_S
        )
        why = wrong_answer(bundle.model, canary, joined(parts))
        return why and f"streams: {why}"

    def prune(self) -> None:
        """Unloads what no experiment, the live release nor the previous one needs."""
        needed: dict[str, set[int]] = {}
        for manifest in self._kept():
            for model, version in manifest.models.items():
                needed.setdefault(model, set()).add(version)
        for model, versions in needed.items():
            if self._repository.keep_only(model, versions):
                self._client.load(model)

    def _kept(self) -> list[Manifest]:
        beside = [self._store.manifest(name) for name in sorted(self._beside())]
        live = (self._store.previous(), self._store.current())
        return [*beside, *(m for m in live if m is not None)]

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
