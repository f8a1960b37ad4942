"""Models without a server: the same repository folder, the same Runtime classes, no Triton.

Knows runtimes and versions. Does not know Triton or releases. `deploy` injects it where
Triton has no wheel (macOS, ARM); it ships as the fake for users' own tests. A call runs
in the caller's thread, so `timeout_s` cannot interrupt it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.client import ModelUnavailable
from models.recipe import Runtime
from models.registry import load, misfit
from models.release.bundle import ReleaseError, read_bundle
from models.release.triton_repository import ModelRepository


class InProcessClient:
    """A `ModelClient` over a model repository's folder."""

    def __init__(self, folder: Path) -> None:
        self._repository = ModelRepository(folder)
        self._runtimes: dict[str, dict[int, Runtime]] = {}
        self._lock = threading.Lock()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,  # noqa: ARG002 - the contract's; see the module's docstring
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, np.ndarray]:
        if version not in (None, *self._runtimes.get(model, {})) and version in self._unread(model):
            self.load(model)  # another process promoted it: there is no server to be told
        loaded = self._runtimes.get(model, {})
        wanted = max(loaded, default=None) if version is None else version
        runtime = loaded.get(wanted) if wanted is not None else None
        if runtime is None:
            raise ModelUnavailable(f"{model} version {version or 'newest'} is not loaded")
        return runtime.infer(inputs)

    def versions(self, model: str) -> tuple[int, ...]:
        return tuple(sorted(self._runtimes.get(model, {})))

    def load(self, model: str) -> None:
        """Loads new version folders, forgets removed ones; a broken one leaves all as it was."""
        with self._lock:
            have = self._runtimes.get(model, {})
            found = self._repository.versions(model)
            try:
                loaded = {v: have.get(v) or self._runtime(model, v) for v in found}
            except Exception as error:
                raise ModelUnavailable(f"{model} does not load: {error}") from error
            self._runtimes = self._runtimes | {model: loaded}

    def load_all(self) -> None:
        """Loads every model of the repository."""
        for config in sorted(self._repository.folder.glob("*/config.pbtxt")):
            self.load(config.parent.name)

    def healthy(self) -> bool:
        return True

    def _unread(self, model: str) -> set[int]:
        return set(self._repository.versions(model)) - set(self._runtimes.get(model, {}))

    def _runtime(self, model: str, version: int) -> Runtime:
        bundle = read_bundle(self._repository.bundle_folder(model, version))
        if why := misfit(bundle):
            raise ReleaseError(why)
        kind: type[Runtime] = load(bundle.runtime)
        return kind(bundle.path)
