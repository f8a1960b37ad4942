"""Weights of bias, personal part and popularity, learned from what was shown.

Knows arrays. Does not know factors or logs. A logistic regression of play on the three, by
Newton's method, over pairs that the factors did not learn from.
"""

from __future__ import annotations

import numpy as np

MIN_SHOWN = 500
_STEPS, _PENALTY = 15, 1.0


def learned_weights(parts: np.ndarray, played: np.ndarray) -> np.ndarray | None:
    """float64 [P]: log-odds of a play per unit of each part; None where too little was shown.

    parts: float64 [N, P]; played: bool [N]. Negative weights become 0: liking and popularity
    cannot count against an item.
    """
    if len(played) < MIN_SHOWN or played.all() or not played.any():
        return None
    x = np.column_stack([np.ones(len(parts)), parts])
    penalty = _PENALTY * np.diag([0.0, *np.ones(parts.shape[1])])
    weights = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(x @ weights)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        weights = weights + np.linalg.solve(hessian, x.T @ (played - p) - penalty @ weights)
    return np.maximum(weights[1:], 0.0)
