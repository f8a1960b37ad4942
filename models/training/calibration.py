"""Calibration of probabilities: Platt scaling, reliability curves, calibration error.

Knows predictions and outcomes as arrays. Does not know models. Bins hold equal numbers
of predictions (adaptive ECE, arXiv 1904.01685): probabilities of rare actions crowd near 0,
where bins of equal width would put them all into one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_OUTCOMES = 30  # positives, and as many negatives, to fit two numbers on
_ROUNDS, _RIDGE, _MIN_SLOPE = 50, 1.0, 0.05


@dataclass(frozen=True)
class Platt:
    """logit -> slope * logit + shift. (1, 0) changes nothing."""

    slope: float = 1.0
    shift: float = 0.0


def fit_platt(logits: np.ndarray, happened: np.ndarray, offset: np.ndarray | float = 0.0) -> Platt:
    """The maximum-likelihood scaling of `logits` float [N], with a small ridge towards (1, 0).

    happened: bool [N]; offset: log-odds that are explained already and are not scaled.
    Fewer than `MIN_OUTCOMES` positives or negatives leave the logits unchanged.
    """
    if min(happened.sum(), (~happened).sum()) < MIN_OUTCOMES:
        return Platt()
    x = np.stack([logits, np.ones_like(logits)], 1).astype(float)
    start = np.array([1.0, 0.0])
    found = start.copy()
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ found + offset, -30, 30)))
        gradient = x.T @ (p - happened) + _RIDGE * (found - start)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        found = found - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return Platt(max(float(found[0]), _MIN_SLOPE), float(found[1]))


@dataclass(frozen=True)
class Reliability:
    """Per bin, ascending: mean prediction, share of positives, count; float64 [bins]."""

    predicted: np.ndarray
    happened: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """The mean of |predicted - happened| over predictions, in [0, 1]; NaN without any."""
        if not self.count.sum():
            return float("nan")
        return float(np.average(np.abs(self.predicted - self.happened), weights=self.count))


def reliability(predicted: np.ndarray, happened: np.ndarray, *, bins: int = 10) -> Reliability:
    """predicted: probabilities [N]; happened: bool [N]. At most `bins` bins, none empty."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return Reliability(
        predicted=np.array([predicted[part].mean() for part in parts]),
        happened=np.array([happened[part].mean() for part in parts]),
        count=np.array([len(part) for part in parts], dtype=float),
    )
