"""The release store: which bundles fit together, which release is live, what is quarantined.

Knows files: bundles/<model>/<version>/, manifests/<release_id>.json, state.json,
quarantine.json and watermarks.json. Does not know how a release goes live
(`models.release.promotion`) nor how far an update came (`models.training.update_state`).
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.release.bundle import (
    BUNDLE_FILE,
    Bundle,
    ReleaseError,
    open_sealed,
    read_bundle,
    seal_bundle,
)
from models.release.canary import Canary, read_canary
from models.release.json_files import write_json
from models.signature import Signature


@dataclass(frozen=True)
class Manifest:
    """Bundles that fit together. `gate`: the gate's result, where the release was gated."""

    release_id: str
    models: Mapping[str, int]
    created_ms: int
    parent: str | None = None
    gate: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Quarantine:
    """Feedback served by `release_id` in [since_ms, until_ms) that no training may read."""

    release_id: str
    since_ms: int
    until_ms: int
    reason: str


@dataclass(frozen=True)
class _State:
    current: str | None = None
    previous: str | None = None
    since_ms: int = 0
    history: tuple[tuple[str, int], ...] = field(default=())  # (release, live since)


class ReleaseStore:
    """The folder of bundles and manifests. One writer at a time; any number of readers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def staging(self, model: str) -> Path:
        """A new empty folder for a recipe to write its bundle into."""
        path = self.folder / "staging" / f"{model}-{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True)
        return path

    def seal(
        self,
        model: str,
        staging: Path,
        *,
        runtime: str,
        signature: Signature,
        created_ms: int,
        metrics: Mapping[str, Any] | None = None,
        version: int | None = None,
    ) -> Bundle:
        """Moves a written staging folder to `version`, by default the model's next, for good."""
        folder = self._bundles(model)
        folder.mkdir(parents=True, exist_ok=True)
        return seal_bundle(
            staging,
            folder / str(version or self.next_version(model)),
            model=model,
            runtime=runtime,
            signature=signature,
            created_ms=created_ms,
            metrics=metrics,
        )

    def versions(self, model: str) -> tuple[int, ...]:
        """Sealed versions, ascending."""
        folder = self._bundles(model)
        found = folder.iterdir() if folder.is_dir() else iter(())
        return tuple(sorted(int(path.name) for path in found if path.name.isdigit()))

    def next_version(self, model: str) -> int:
        return max(self.versions(model), default=0) + 1

    def bundle(self, model: str, version: int) -> Bundle:
        """Raises `ReleaseError` when it is missing or its files differ from its seal."""
        return open_sealed(self._bundles(model) / str(version))

    def bundle_folder(self, model: str, version: int) -> Path | None:
        """The bundle's folder; None where it is missing. The seal is not checked."""
        path = self._bundles(model) / str(version)
        return path if (path / BUNDLE_FILE).is_file() else None

    def canary(self, model: str, version: int) -> Canary | None:
        """The bundle's canary; None where it or the bundle is missing. The seal is not checked."""
        path = self._bundles(model) / str(version)
        if not (path / BUNDLE_FILE).is_file():
            return None
        return read_canary(path, read_bundle(path).runtime)

    @contextmanager
    def repair_lock(self, model: str, since_s: float) -> Iterator[bool]:
        """Yields whether this process may reload the model: of several gateways, one does.

        False while another process reloads it, or where one did since `since_s` (Unix seconds).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".repair-{model}"
        known = path.exists()
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if known and path.stat().st_mtime >= since_s:
                yield False
                return
            yield True
            os.utime(path)

    @contextmanager
    def making_release(self) -> Iterator[None]:
        """Held while a release is made from the live one: a second one would overwrite the first.

        The kernel frees it when the process ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".making").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def propose(
        self,
        models: Mapping[str, int],
        *,
        created_ms: int,
        gate: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Writes the manifest of a release that is not live yet; every bundle is checked."""
        for model, version in models.items():
            self.bundle(model, version)
        folder = self.folder / "manifests"
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("r*.json"))) + 1
        current = self._state().current
        manifest = Manifest(f"r{number:04d}", dict(models), created_ms, current, gate)
        write_json(folder / f"{manifest.release_id}.json", asdict(manifest))
        return self.manifest(manifest.release_id)

    def manifest(self, release_id: str) -> Manifest:
        """Raises `ReleaseError` for an unknown release."""
        path = self.folder / "manifests" / f"{release_id}.json"
        if not path.is_file():
            raise ReleaseError(f"no release {release_id!r}; `tidemill models status` lists them")
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))

    def manifests(self) -> list[Manifest]:
        """Every release ever proposed, oldest first."""
        names = sorted(path.stem for path in (self.folder / "manifests").glob("r*.json"))
        return [self.manifest(name) for name in names]

    def current(self) -> Manifest | None:
        """The live release; None before the first."""
        name = self._state().current
        return self.manifest(name) if name else None

    def previous(self) -> Manifest | None:
        """The release that stays loaded beside the live one, for requests pinned to it."""
        name = self._state().previous
        return self.manifest(name) if name else None

    def set_current(self, release_id: str, *, at_ms: int) -> None:
        """Makes a release live in one atomic write."""
        self.manifest(release_id)
        old = self._state()
        if old.current == release_id:
            return
        history = (*old.history, (release_id, at_ms))
        state = _State(release_id, old.current, at_ms, history)
        write_json(self.folder / "state.json", asdict(state))

    def was_live(self, release_id: str) -> bool:
        """Whether the release is live or has been."""
        return any(name == release_id for name, _ in self._state().history)

    def first_live_ms(self, model: str) -> int:
        """When the first release with `model` went live; 0 before that."""
        times = [
            at_ms for name, at_ms in self._state().history if model in self.manifest(name).models
        ]
        return min(times, default=0)

    def live_since_ms(self) -> int:
        """When the live release went live, Unix milliseconds; 0 before the first."""
        return self._state().since_ms

    def quarantine(self, entry: Quarantine) -> None:
        """Adds an interval of feedback that training leaves out."""
        entries = [*self.quarantined(), entry]
        write_json(self.folder / "quarantine.json", [asdict(each) for each in entries])

    def quarantined(self) -> list[Quarantine]:
        """Intervals of feedback that training leaves out."""
        path = self.folder / "quarantine.json"
        raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return [Quarantine(**each) for each in raw]

    def watermarks(self) -> dict[str, int]:
        """Watermarks of a home from before `models.training.update_state`, ms, by model."""
        path = self.folder / "watermarks.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _bundles(self, model: str) -> Path:
        return self.folder / "bundles" / model

    def _state(self) -> _State:
        path = self.folder / "state.json"
        if not path.is_file():
            return _State()
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["history"] = tuple((name, at_ms) for name, at_ms in raw["history"])
        return _State(**raw)
