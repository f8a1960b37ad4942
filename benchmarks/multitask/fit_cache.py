"""A cache of finished fits under .cache/, so that a stopped run resumes.

Knows files and their keys: code, rows and setting. Does not know models.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.multitask.datasets import Dataset
from benchmarks.multitask.fitting import Trial, fit_predict
from benchmarks.report import config_hash

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "benchmarks" / "multitask"
MADE_BY = (
    "benchmarks/multitask/fitting.py",
    "benchmarks/multitask/datasets.py",
    "benchmarks/multitask/world_dataset.py",
    "models/ranking/ple/network.py",
    "models/ranking/ple/calibrate.py",
)


def fit_cached(
    dataset: Dataset, model: str, trial: Trial, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `fitting.fit_predict`, from the cache if present."""
    path = cache_path(dataset, model, trial, seed)
    if not path.exists():
        valid, test = fit_predict(dataset, model, trial, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".writing.npz")
        np.savez_compressed(beside, valid=valid, test=test)
        os.replace(beside, path)
    with np.load(path) as kept:
        return kept["valid"], kept["test"]


def cache_path(dataset: Dataset, model: str, trial: Trial, seed: int) -> Path:
    """The file of a fit; it depends on the code, the rows and the setting."""
    made_of = {
        "rows": f"{dataset.name} {dataset.checksum} {len(dataset.train)} {len(dataset.test)}",
        "model": model,
        "trial": asdict(trial),
        "seed": seed,
    }
    code = hashlib.sha256(b"".join((ROOT / path).read_bytes() for path in MADE_BY)).hexdigest()
    return CACHE / config_hash({**made_of, "code": code}) / "fit.npz"
