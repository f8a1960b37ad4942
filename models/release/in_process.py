"""Models in this process: the same repository folder and Runtime classes as Triton's.

Knows runtimes and versions. Does not know Triton or releases. `deploy` injects it where
Triton has no wheel (macOS, ARM), and users' own tests may use it as a fake. A call runs in
the caller's thread, so `timeout_s` cannot interrupt it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from models.batch import Answer, answer_each
from models.client import ModelUnavailable
from models.recipe import Runtime
from models.registry import import_attribute
from models.release.bundle import ReleaseError, read_bundle, signature_mismatch
from models.release.triton_repository import ModelRepository
from models.stream import parts_of


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
        timeout_s: float = 1.0,  # noqa: ARG002 - part of the contract; see the module docstring
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, np.ndarray]:
        return self._loaded(model, version).infer(inputs)

    def infer_many(
        self,
        model: str,
        requests: Sequence[Mapping[str, np.ndarray]],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,  # noqa: ARG002
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> list[Answer]:
        return answer_each(self._loaded(model, version), requests)

    def infer_stream(
        self,
        model: str,
        inputs: Mapping[str, np.ndarray],
        *,
        version: int | None = None,
        timeout_s: float = 1.0,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """As the contract says; the deadline is checked between two parts."""
        end_s = time.monotonic() + timeout_s
        with closing(parts_of(self._loaded(model, version), inputs)) as parts:
            for n, part in enumerate(parts):
                if n and time.monotonic() > end_s:
                    raise ModelUnavailable(f"{model} did not give all parts in time")
                yield part

    def _loaded(self, model: str, version: int | None) -> Runtime:
        if version not in (None, *self._runtimes.get(model, {})) and version in self._unread(model):
            self.load(model)  # promoted by another process; there is no server to notify
        loaded = self._runtimes.get(model, {})
        wanted = max(loaded, default=None) if version is None else version
        runtime = loaded.get(wanted) if wanted is not None else None
        if runtime is None:
            raise ModelUnavailable(f"{model} version {version or 'newest'} is not loaded")
        return runtime

    def versions(self, model: str) -> tuple[int, ...]:
        return tuple(sorted(self._runtimes.get(model, {})))

    def load(self, model: str) -> None:
        """Loads new version folders and drops removed ones; one that fails changes nothing.

        Raises `ModelUnavailable` when a version does not load.
        """
        with self._lock:
            loaded = self._read(model, self._runtimes.get(model, {}))
            self._runtimes = self._runtimes | {model: loaded}

    def reload(self, model: str) -> None:
        """Reads every version folder again; the loaded versions answer until all are read."""
        with self._lock:
            self._runtimes = self._runtimes | {model: self._read(model, {})}

    def load_all(self) -> None:
        """Loads every model of the repository."""
        for model in self._repository.models():
            self.load(model)

    def healthy(self) -> bool:
        return True

    def _read(self, model: str, have: Mapping[int, Runtime]) -> dict[int, Runtime]:
        try:
            found = self._repository.versions(model)
            return {v: have.get(v) or self._runtime(model, v) for v in found}
        except Exception as error:
            raise ModelUnavailable(f"{model} does not load: {error}") from error

    def _unread(self, model: str) -> set[int]:
        return set(self._repository.versions(model)) - set(self._runtimes.get(model, {}))

    def _runtime(self, model: str, version: int) -> Runtime:
        bundle = read_bundle(self._repository.bundle_folder(model, version))
        if why := signature_mismatch(bundle):
            raise ReleaseError(why)
        kind: type[Runtime] = import_attribute(bundle.runtime)
        return kind(bundle.path)
