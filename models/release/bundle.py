"""Bundles on disk: one trained model, its signature and its seal.

Knows the files of one bundle folder: what a recipe wrote, and bundle.json. Does not know
releases (`models.release.store`), canaries (`models.release.canary`) or Triton
(`models.release.triton_repository`).
A sealed bundle never changes; its sha256 proves it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.registry import REGISTRY
from models.signature import Signature, TensorSpec

BUNDLE_FILE = "bundle.json"


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

    @property
    def refused(self) -> bool:
        """Whether this is a challenger that the gate of its update refused."""
        return self.metrics.get("promoted") is False


class ReleaseError(RuntimeError):
    """A bundle or release is missing, damaged or cannot go live; the message names the fix."""


def seal_bundle(
    staging: Path,
    target: Path,
    *,
    model: str,
    runtime: str,
    signature: Signature,
    created_ms: int,
    metrics: Mapping[str, Any] | None = None,
) -> Bundle:
    """Writes bundle.json and moves `staging` to `target`, whose name is the version."""
    stated = {
        "model": model,
        "version": int(target.name),
        "runtime": runtime,
        "signature": asdict(signature),
        "created_ms": created_ms,
        "metrics": dict(metrics or {}),
        "sha256": _digest(staging),
    }
    (staging / BUNDLE_FILE).write_text(json.dumps(stated, indent=2), encoding="utf-8")
    os.replace(staging, target)
    return open_sealed(target)


def open_sealed(path: Path) -> Bundle:
    """The bundle in `path`, its files checked against the seal.

    Raises:
        ReleaseError: the bundle is missing, or a file has changed since the seal.
    """
    model, version = path.parent.name, path.name
    if not (path / BUNDLE_FILE).is_file():
        raise ReleaseError(f"no bundle {model}/{version}: `tidemill models train {model}`")
    bundle = read_bundle(path)
    if _digest(path) != bundle.sha256:
        raise ReleaseError(
            f"bundle {model}/{version} was changed after its seal: "
            f"`tidemill models train {model}` makes a new one"
        )
    return bundle


def read_bundle(path: Path) -> Bundle:
    """What bundle.json states; the seal is not checked."""
    raw = json.loads((path / BUNDLE_FILE).read_text(encoding="utf-8"))
    raw["signature"] = _signature(raw["signature"])
    return Bundle(**raw, path=path)


def signature_mismatch(bundle: Bundle) -> str:
    """Why this code cannot serve or train a sealed bundle, and the fix; "" where it can.

    A bundle answers to the signature of its seal; requests are built by today's code.
    """
    entry = REGISTRY.get(bundle.model)
    unmet = () if entry is None else entry.unmet_by(bundle.signature)
    if not unmet:
        return ""
    names = ", ".join(unmet)
    return (
        f"{bundle.model} version {bundle.version} was trained for another signature ({names} "
        f"differ): `tidemill models train {bundle.model}`, then `tidemill models promote`"
    )


def drop_staging(path: Path) -> None:
    """Removes a staging folder that will not be sealed."""
    shutil.rmtree(path, ignore_errors=True)


def _signature(raw: Mapping[str, Any]) -> Signature:
    def specs(side: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in raw[side])

    return Signature(specs("inputs"), specs("outputs"))


def _digest(folder: Path) -> str:
    """sha256 over the names and bytes of every file except bundle.json."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != BUNDLE_FILE:
            digest.update(str(path.relative_to(folder)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
