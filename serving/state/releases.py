"""The live release, read from the release store.

Knows manifests. Does not know how a release is built or loaded into Triton
(`models.release.promotion`), nor whether its models answer
(`serving.monitoring.model_monitor`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from models.release.canary import Canary
from models.release.store import Manifest
from serving.pipeline.query import Release

_LOG = logging.getLogger(__name__)


class ReleaseReader(Protocol):
    """The part of `models.release.store.ReleaseStore` that serving needs."""

    def current(self) -> Manifest | None: ...

    def manifests(self) -> Sequence[Manifest]: ...

    def canary(self, model: str, version: int) -> Canary | None: ...

    def bundle_folder(self, model: str, version: int) -> Path | None: ...

    def repair_lock(self, model: str, since_s: float) -> AbstractContextManager[bool]: ...


class ReleaseSwitch:
    """The live release. Reads the store every `every_s`, and at once after `refresh_soon`."""

    def __init__(
        self,
        reader: ReleaseReader | None,
        on_change: Callable[[Release], None] = lambda _: None,
        *,
        every_s: float = 0.5,
    ) -> None:
        self._reader, self._on_change, self._every_s = reader, on_change, every_s
        self._current = Release()
        self._named: dict[str, Release] = {}  # manifests do not change
        self._refresh_soon = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.refresh()

    @property
    def current(self) -> Release:
        return self._current

    def named(self, release_id: str) -> Release | None:
        """A release that need not be live, as an experiment's arm names it; None if unknown."""
        if release_id not in self._named:
            for each in self.history():
                self._named[each.release_id] = Release(each.release_id, dict(each.models))
        return self._named.get(release_id)

    def history(self) -> list[Manifest]:
        """Every release ever proposed, oldest first, with its gate."""
        return list(self._reader.manifests()) if self._reader is not None else []

    def refresh(self) -> None:
        """Reads the live release. If reading fails, the current release stays."""
        if self._reader is None:
            return
        try:
            manifest = self._reader.current()
        except Exception as error:
            _LOG.warning("cannot read the live release, %s stays: %s", self._current, error)
            return
        found = Release(manifest.release_id, dict(manifest.models)) if manifest else Release()
        if found != self._current:
            self._current = found
            _LOG.info("release %s is live", found.release_id)
            self._on_change(found)

    def refresh_soon(self) -> None:
        """Refreshes on the switch's own thread without waiting for the next interval."""
        self._refresh_soon.set()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._refresh_loop, name="releases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._refresh_soon.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _refresh_loop(self) -> None:
        while not self._stop.is_set():
            self._refresh_soon.wait(self._every_s)
            self._refresh_soon.clear()
            self.refresh()
