"""Bundles and releases on disk: what was trained, what fits together, what is live.

Knows files: bundles/<model>/<version>/, manifests/<release_id>.json, state.json and
quarantine.json. Does not know Triton (`models.release.triton_repository`) or how a release is put
live (`models.release.promotion`). A sealed bundle never changes; its sha256 proves it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.signature import Signature, TensorSpec

CANARY = "canary.npz"
_BUNDLE = "bundle.json"


@dataclass(frozen=True)
class Bundle:
    """One trained model on disk. `runtime` is "module:Class" of its `models.recipe.Runtime`."""

    model: str
    version: int
    runtime: str
    signature: Signature
    created_ms: int
    metrics: Mapping[str, Any]
    sha256: str
    path: Path


@dataclass(frozen=True)
class Manifest:
    """Bundles that fit together. `gate` holds why it was let through, where it was judged."""

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


class ReleaseError(RuntimeError):
    """A bundle or release is missing, damaged or cannot go live; the message says the fix."""


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
    ) -> Bundle:
        """Moves a written staging folder to the model's next version, for good."""
        folder = self.folder / "bundles" / model
        folder.mkdir(parents=True, exist_ok=True)
        version = max(self.versions(model), default=0) + 1
        stated = {
            "model": model,
            "version": version,
            "runtime": runtime,
            "signature": asdict(signature),
            "created_ms": created_ms,
            "metrics": dict(metrics or {}),
            "sha256": _digest(staging),
        }
        (staging / _BUNDLE).write_text(json.dumps(stated, indent=2), encoding="utf-8")
        os.replace(staging, folder / str(version))
        return self.bundle(model, version)

    def versions(self, model: str) -> tuple[int, ...]:
        """Sealed versions, ascending."""
        folder = self.folder / "bundles" / model
        found = folder.iterdir() if folder.is_dir() else iter(())
        return tuple(sorted(int(path.name) for path in found if path.name.isdigit()))

    def bundle(self, model: str, version: int) -> Bundle:
        """Raises `ReleaseError` when it is missing or its files differ from its seal."""
        path = self.folder / "bundles" / model / str(version)
        if not (path / _BUNDLE).is_file():
            raise ReleaseError(f"no bundle {model}/{version}: `tidemill models train {model}`")
        bundle = read_bundle(path)
        if _digest(path) != bundle.sha256:
            raise ReleaseError(f"bundle {model}/{version} was changed after its seal; train anew")
        return bundle

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
        _write(folder / f"{manifest.release_id}.json", asdict(manifest))
        return self.manifest(manifest.release_id)

    def manifest(self, release_id: str) -> Manifest:
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
        """The release that stays loaded beside the live one, so pinned requests still answer."""
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
        _write(self.folder / "state.json", asdict(state))

    def live_since_ms(self) -> int:
        return self._state().since_ms

    def quarantine(self, entry: Quarantine) -> None:
        entries = [*self.quarantined(), entry]
        _write(self.folder / "quarantine.json", [asdict(each) for each in entries])

    def quarantined(self) -> list[Quarantine]:
        """Intervals of feedback that training leaves out."""
        path = self.folder / "quarantine.json"
        raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return [Quarantine(**each) for each in raw]

    def watermarks(self) -> dict[str, int]:
        """Per model: up to when its feedback was used by an update, ms."""
        path = self.folder / "watermarks.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def set_watermark(self, model: str, at_ms: int) -> None:
        _write(self.folder / "watermarks.json", self.watermarks() | {model: at_ms})

    def _state(self) -> _State:
        path = self.folder / "state.json"
        if not path.is_file():
            return _State()
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["history"] = tuple((name, at_ms) for name, at_ms in raw["history"])
        return _State(**raw)


def read_bundle(path: Path) -> Bundle:
    """The statement of a bundle folder, unchecked. Needs neither numpy's nor Triton's help."""
    raw = json.loads((path / _BUNDLE).read_text(encoding="utf-8"))
    raw["signature"] = _signature(raw["signature"])
    return Bundle(**raw, path=path)


def write_canary(folder: Path, inputs: Mapping[str, np.ndarray]) -> None:
    """Stores one request that a promotion sends through the server before going live.

    BYTES tensors are object arrays of bytes; they are stored as fixed-width bytes.
    """
    plain = {k: v.astype(np.bytes_) if v.dtype == object else v for k, v in inputs.items()}
    np.savez(folder / CANARY, **plain)  # type: ignore[arg-type]


def read_canary(folder: Path) -> dict[str, np.ndarray] | None:
    """`write_canary`'s request; None where the bundle has none."""
    path = folder / CANARY
    if not path.is_file():
        return None
    with np.load(path) as stored:
        raw = {name: stored[name] for name in stored.files}
    return {k: v.astype(object) if v.dtype.kind == "S" else v for k, v in raw.items()}


def drop_staging(path: Path) -> None:
    """Removes a staging folder that will not be sealed."""
    shutil.rmtree(path, ignore_errors=True)


def _signature(raw: Mapping[str, Any]) -> Signature:
    def specs(side: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in raw[side])

    return Signature(specs("inputs"), specs("outputs"))


def _digest(folder: Path) -> str:
    """sha256 over the names and bytes of every file but the statement itself."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _BUNDLE:
            digest.update(str(path.relative_to(folder)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _write(path: Path, value: object) -> None:
    """A reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    partial.write_text(json.dumps(_plain(value), indent=2, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)


def _plain(value: object) -> object:
    """The value as JSON knows it; a float that is not finite (nothing could be told) is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
