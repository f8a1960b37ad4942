"""Weights of bias, personal part and popularity, learned from what was shown.

Knows arrays. Does not know factors or logs. Logistic regressions by Newton's method, over
pairs that the factors did not learn from.
"""

from __future__ import annotations

import numpy as np

MIN_SHOWN = 500
_STEPS = 15


def learned_weights(
    parts: np.ndarray,
    played: np.ndarray,
    start: np.ndarray,
    strength: float,
    beside: np.ndarray | None = None,
) -> np.ndarray:
    """float64 [P]: log-odds of a play per unit of each part; `start` where too little was shown.

    parts: float64 [N, P], of unit deviation; played: bool [N]. start: float64 [P], which
    `strength` impressions are worth. beside: float64 [N, B], explains without being served, as
    the slot. Negative weights become 0: liking and popularity cannot count against an item.
    """
    if len(played) < MIN_SHOWN or played.all() or not played.any():
        return start
    extra = np.zeros((len(parts), 0)) if beside is None else beside
    x = np.column_stack([parts, extra])
    centre = np.concatenate([start, np.zeros(extra.shape[1])])
    found = logistic(x, played, centre, 0.15 * strength)  # 0.15: p (1 - p) of a usual play rate
    weights: np.ndarray = np.maximum(found[1 : 1 + len(start)], 0.0)
    return weights


def logistic(
    x: np.ndarray, happened: np.ndarray, centre: np.ndarray, precision: float
) -> np.ndarray:
    """float64 [1 + P]: intercept and coefficients, with a Gaussian prior about `centre` [P].

    x: float64 [N, P]; happened: bool [N].
    """
    x = np.column_stack([np.ones(len(x)), x])
    prior = np.concatenate([[0.0], centre])
    penalty = np.diag([1e-3, *np.full(len(centre), precision)])
    rate = np.clip(happened.mean(), 0.005, 0.995)
    found = np.concatenate([[np.log(rate / (1 - rate))], np.zeros(len(centre))])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        found = found + np.linalg.solve(hessian, x.T @ (happened - p) - penalty @ (found - prior))
    return found
