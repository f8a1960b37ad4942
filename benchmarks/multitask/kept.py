"""Each finished fit kept under .cache/, so that a stopped run goes on where it was.

Knows files and what made them. What is kept belongs to the code, the rows and the setting
that made it. Does not know models.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.multitask.data import Proxy
from benchmarks.multitask.fitting import Trial, fitted
from benchmarks.report import config_hash

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".cache" / "benchmarks" / "multitask"
MADE_BY = (
    "benchmarks/multitask/fitting.py",
    "benchmarks/multitask/data.py",
    "benchmarks/multitask/world.py",
    "models/ranking/ple/network.py",
    "models/ranking/ple/calibrate.py",
)


def fitted_once(proxy: Proxy, model: str, trial: Trial, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `fitting.fitted`, from .cache/ where it was made before."""
    path = kept_at(proxy, model, trial, seed)
    if not path.exists():
        valid, test = fitted(proxy, model, trial, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".writing.npz")
        np.savez_compressed(beside, valid=valid, test=test)
        os.replace(beside, path)
    with np.load(path) as kept:
        return kept["valid"], kept["test"]


def kept_at(proxy: Proxy, model: str, trial: Trial, seed: int) -> Path:
    """Where this fit is kept; another code, other rows or another setting give another place."""
    made_of = {
        "rows": f"{proxy.name} {proxy.checksum} {len(proxy.train)} {len(proxy.test)}",
        "model": model,
        "trial": asdict(trial),
        "seed": seed,
    }
    code = hashlib.sha256(b"".join((ROOT / path).read_bytes() for path in MADE_BY)).hexdigest()
    return KEPT / config_hash({**made_of, "code": code}) / "fit.npz"
