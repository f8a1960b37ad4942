"""Do probabilities mean what they say? Reliability curves and the expected calibration error.

Knows predictions and outcomes as arrays. Does not know models. Bins hold equal numbers
of predictions (adaptive ECE, arXiv:1904.01685): probabilities of rare actions crowd
near 0, where bins of equal width would see one bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reliability:
    """Per bin, ascending: mean prediction, share that happened, count; float64 [bins]."""

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
