"""Exploration of fusion weights: one sample of a user's Dirichlet, with its log density.

Knows a concentration and a seed. Does not know users, requests or networks
(`models.ranking.grade.policy` computes the concentration). Numpy only: serving draws, and
serving has no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MIN_WEIGHT = 1e-5  # off the border, where the log density is infinite
_STREAM = 0x6472  # a random stream of its own beside the request's other draws


@dataclass(frozen=True)
class WeightDraw:
    """weights: float32 [T], on the simplex, all positive; log_density: under the Dirichlet."""

    weights: np.ndarray
    log_density: float


def draw_weights(alpha: np.ndarray, share: float, seed: int) -> WeightDraw | None:
    """A sample of Dirichlet(alpha float [T]) for a `share` of seeds; None for the others.

    The same arguments give the same answer. An alpha that is not finite and positive also
    gives None: the caller then serves the mean.
    """
    rng = np.random.default_rng([_STREAM, seed])
    if rng.random() >= share or not (np.isfinite(alpha) & (alpha > 0)).all():
        return None
    weights = np.maximum(rng.dirichlet(alpha.astype(float)), MIN_WEIGHT)
    logged = (weights / weights.sum()).astype(np.float32)
    return WeightDraw(logged, log_density(alpha, logged))


def log_density(alpha: np.ndarray, weights: np.ndarray) -> float:
    """log Dirichlet(weights | alpha), both [T]; weights on the simplex, all positive."""
    concentration = alpha.astype(float)
    normal = math.lgamma(float(concentration.sum())) - sum(map(math.lgamma, concentration))
    return float(normal + ((concentration - 1) * np.log(weights.astype(float))).sum())
