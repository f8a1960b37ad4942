"""Which release answers now, and whether its models really do.

Knows manifests and canary requests. Does not know how a release is made or put into
Triton (`models.release.promotion`). A watchdog is needed because Triton calls a model ready
whose process has died: only a real request tells.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from models.client import ModelClient, ModelUnavailable
from models.release.bundle import Manifest
from models.signature import BadInput
from serving.pipeline.query import Release

_LOG = logging.getLogger(__name__)


class ReleaseBook(Protocol):
    """What this module needs of `models.release.bundle.ReleaseStore`."""

    def current(self) -> Manifest | None: ...

    def manifests(self) -> Sequence[Manifest]: ...


class ReleaseSwitch:
    """The current release. Looks at the book twice a second, and at once when told."""

    def __init__(
        self,
        book: ReleaseBook | None,
        on_change: Callable[[Release], None] = lambda _: None,
        *,
        every_s: float = 0.5,
    ) -> None:
        self._book, self._on_change, self._every_s = book, on_change, every_s
        self._now = Release()
        self._look = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.refresh()

    @property
    def now(self) -> Release:
        return self._now

    def history(self) -> list[Manifest]:
        """Every release ever proposed, oldest first, with its gate."""
        return list(self._book.manifests()) if self._book is not None else []

    def refresh(self) -> None:
        """Reads the book. A book that cannot be read leaves the current release in place."""
        if self._book is None:
            return
        try:
            manifest = self._book.current()
        except Exception as error:
            _LOG.warning("the current release cannot be read, %s stays: %s", self._now, error)
            return
        found = Release(manifest.release_id, dict(manifest.models)) if manifest else Release()
        if found != self._now:
            self._now = found
            _LOG.info("release %s is live", found.release_id)
            self._on_change(found)

    def nudge(self) -> None:
        """A release was published: look now."""
        self._look.set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="releases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._look.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _keep(self) -> None:
        while not self._stop.is_set():
            self._look.wait(self._every_s)
            self._look.clear()
            self.refresh()


class Watchdog:
    """Sends each live model a real request; reloads one that twice failed while Triton is up.

    `canaries` gives one request per model name. `state` names the models that do not
    answer, for /healthz.
    """

    def __init__(
        self,
        models: ModelClient,
        release: Callable[[], Release],
        canaries: Callable[[], Mapping[str, Mapping[str, np.ndarray]]],
        *,
        every_s: float = 5.0,
    ) -> None:
        self._models, self._release, self._canaries = models, release, canaries
        self._every_s = every_s
        self._failures: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.state: dict[str, str] = {}

    def check(self) -> None:
        """One round. Public so that a test, or an operator, can ask for one."""
        release = self._release()
        requests = self._canaries()
        state: dict[str, str] = {}
        for model, version in release.models.items():
            if model in requests:
                problem = self._problem(model, version, requests[model])
                if problem is not None:
                    state[model] = problem
        self.state = state

    def _problem(self, model: str, version: int, request: Mapping[str, np.ndarray]) -> str | None:
        try:
            self._models.infer(model, request, version=version, timeout_s=2.0)
        except BadInput as error:
            # It answered: the canary does not fit, which is no reason to reload.
            _LOG.warning("the canary of %s does not fit: %s", model, error)
        except ModelUnavailable as error:
            self._failures[model] = self._failures.get(model, 0) + 1
            if self._failures[model] >= 2 and self._models.healthy():
                self._reload(model)
            return str(error)
        self._failures[model] = 0
        return None

    def _reload(self, model: str) -> None:
        try:
            self._models.load(model)
            self._failures[model] = 0
            _LOG.warning("%s did not answer its canary and was loaded again", model)
        except ModelUnavailable as error:
            _LOG.error("%s cannot be loaded again: %s", model, error)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _keep(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.check()
            except Exception:
                _LOG.exception("the watchdog's round failed")
