"""Fusion weights drawn for exploring: one sample of a user's Dirichlet, with its log density.

Knows a concentration and a seed. Does not know users, requests or networks
(`models.ranking.grade.policy` is the policy whose concentration this is). Numpy only: serving
draws, and serving has no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEAST_WEIGHT = 1e-5  # off the border, where the density has no logarithm
_STREAM = 0x6472  # apart from what else a request draws by its seed


@dataclass(frozen=True)
class Drawn:
    """weights: float32 [T], on the simplex, none 0; log_density: of them under the Dirichlet."""

    weights: np.ndarray
    log_density: float


def draw(alpha: np.ndarray, share: float, seed: int) -> Drawn | None:
    """A sample of Dirichlet(alpha [T]) for a `share` of seeds; None for the others.

    The same arguments give the same answer. None also where alpha is no concentration
    (not finite, or not positive): then the mean is served, which the caller has.
    """
    rng = np.random.default_rng([_STREAM, seed])
    if rng.random() >= share or not (np.isfinite(alpha) & (alpha > 0)).all():
        return None
    weights = np.maximum(rng.dirichlet(alpha.astype(float)), LEAST_WEIGHT)
    told = (weights / weights.sum()).astype(np.float32)
    return Drawn(told, log_density(alpha, told))


def log_density(alpha: np.ndarray, weights: np.ndarray) -> float:
    """log Dirichlet(weights | alpha), both [T]; weights on the simplex, none 0."""
    concentration = alpha.astype(float)
    normal = math.lgamma(float(concentration.sum())) - sum(map(math.lgamma, concentration))
    return float(normal + ((concentration - 1) * np.log(weights.astype(float))).sum())
