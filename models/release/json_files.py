"""JSON files that a reader sees whole: the old content or the new one.

Knows how they are written. Does not know what they hold (`models.release.store`,
`models.training.update_state`).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_json(path: Path, value: object, *, sync: bool = False) -> None:
    """Writes a file and renames it to `path`. `sync`: it also survives a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(plain(value), indent=2, allow_nan=False))
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)
    if sync:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: object) -> object:
    """The value as JSON types; a float that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
