"""Pointers: observed clicks as a distribution over the next word, as log-shares over a trie.

Knows counts of queries and a trie. Numpy only. Does not know the network, whose learned gates
weight each pointer.

At a node n with child c, pointer j is log((m_j(c) + q(c)/q(n)) / (m_j(n) + 1)): the share of j's
counts that continue to c, smoothed by one pseudo-count with the crowd's distribution. Without
any count it is the crowd's share, so no share is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.layers.trie import Trie

# live: recently clicked under the item (the feature); anchors: clicked under it before the
# release (the bundle); user: clicked or searched by the user; crowd: clicks of all users.
POINTERS = ("live", "anchors", "user", "crowd")


def query_counts(lists: Sequence[Sequence[int]], queries: int) -> np.ndarray:
    """float32 [len(lists), queries]: how often each query number occurs in each list."""
    rows = [
        np.bincount(np.asarray(numbers, dtype=np.int64), minlength=queries) for numbers in lists
    ]
    return np.stack(rows).astype(np.float32)


def crowd_mass(trie: Trie, clicks: np.ndarray) -> np.ndarray:
    """float32 [N]: the crowd's share of every subtree, with one pseudo-click per query.

    clicks: int [Q].
    """
    weight = clicks.astype(np.float64) + 1.0
    return trie.mass((weight / weight.sum()).astype(np.float32))


def edge_features(
    trie: Trie, mass: np.ndarray, crowd: np.ndarray, children: np.ndarray
) -> np.ndarray:
    """Log-shares of the edges into `children`.

    mass: float32 [..., 3, N] of live, anchors and user; crowd: float32 [N]; children: int64
    [E], without the root. Returns float32 [..., E, 4] in POINTERS' order.
    """
    parents = trie.parent[children]
    share = crowd[children] / crowd[parents]
    below, above = mass[..., children], mass[..., parents]
    return log_shares(np.swapaxes(below, -1, -2), np.swapaxes(above, -1, -2), share)


def log_shares(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """float32 [..., E, 4] in POINTERS' order.

    below, above: float32 [..., E, 3], the masses at an edge's two ends; share: float32 [E], the
    crowd's share of the edge.
    """
    own = np.log((below + share[:, None]) / (above + 1.0))
    crowd_log = np.broadcast_to(np.log(share)[:, None], (*own.shape[:-1], 1))
    return np.concatenate([own, crowd_log], axis=-1).astype(np.float32, copy=False)
