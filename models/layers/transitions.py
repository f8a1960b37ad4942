"""Item-to-item transitions: counted (F1) and learned in closed form (ridge).

Knows sequences of item numbers, oldest first. Numpy only. Does not know users or time. F1 is the
untrained baseline of the sequence models: window 5, weight 1/distance, 0.3 for the reverse
direction, square-root degree normalisation. The ridge form follows SLIST (linear session-aware
item models, arXiv 2103.16104): from a decayed history to the next items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 5
REVERSE = 0.3


def transitions(sequences: Sequence[np.ndarray], items: int) -> np.ndarray:
    """F1: float32 [N, N], row = from, column = to; the diagonal is 0."""
    counts = np.zeros((items, items), dtype=np.float32)
    for sequence in sequences:
        for distance in range(1, WINDOW + 1):
            earlier, later = sequence[:-distance], sequence[distance:]
            np.add.at(counts, (earlier, later), 1.0 / distance)
    counts += REVERSE * counts.T
    np.fill_diagonal(counts, 0.0)
    out, into = counts.sum(axis=1), counts.sum(axis=0)
    scale = np.sqrt(np.maximum(out, 1e-9))[:, None] * np.sqrt(np.maximum(into, 1e-9))[None]
    found: np.ndarray = (counts / scale).astype(np.float32)
    return found


def ridge(past: np.ndarray, future: np.ndarray, penalty: float) -> np.ndarray:
    """float32 [N, N]: argmin |past W - future|^2 + penalty |W|^2, zero diagonal.

    past, future: float32 [C, N], decayed histories and the items after each.
    """
    gram = past.T @ past
    gram[np.diag_indices_from(gram)] += penalty
    weights = np.linalg.solve(gram.astype(np.float64), (past.T @ future).astype(np.float64))
    np.fill_diagonal(weights, 0.0)
    return weights.astype(np.float32)


def decayed(history: np.ndarray, decay: float, items: int) -> np.ndarray:
    """float32 [N]: decay^age of each item's newest occurrence; `history` runs newest first."""
    weights = np.zeros(items, dtype=np.float32)
    np.maximum.at(weights, history, decay ** np.arange(len(history), dtype=np.float32))
    return weights
