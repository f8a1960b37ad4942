"""Pointers: what behaviour already says about the next word, as log-shares over a trie.

Knows counts of queries and a trie. Numpy only. Does not know the network, which decides
by learned gates how far to believe each pointer.

At a node n with child c, pointer j says log((m_j(c) + q(c)/q(n)) / (m_j(n) + 1)): the
share of j's counts that go on to c, smoothed by one pseudo-count spread as the whole
crowd spreads it. Without any count it is the crowd's own share, so nothing is ever 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.layers.trie import Trie

# live: clicked lately under the video (the feature); anchors: clicked under it up to the
# release (the bundle); user: clicked or searched by the user; crowd: everybody's clicks.
POINTERS = ("live", "anchors", "user", "crowd")


def counts(lists: Sequence[Sequence[int]], queries: int) -> np.ndarray:
    """float32 [len(lists), Q]: how often each query number occurs in each list."""
    rows = [
        np.bincount(np.asarray(numbers, dtype=np.int64), minlength=queries) for numbers in lists
    ]
    return np.stack(rows).astype(np.float32)


def crowd_mass(trie: Trie, clicks: np.ndarray) -> np.ndarray:
    """float32 [N]: the crowd's share of every subtree, one pseudo-click a query."""
    weight = clicks.astype(np.float64) + 1.0
    return trie.mass((weight / weight.sum()).astype(np.float32))


def edge_features(
    trie: Trie, mass: np.ndarray, crowd: np.ndarray, children: np.ndarray
) -> np.ndarray:
    """Log-shares of the edges into `children`.

    mass: float32 [..., 3, N] of live, anchors and user; crowd: float32 [N];
    children: int64 [E], none the root. Returns float32 [..., E, 4] in POINTERS' order.
    """
    parents = trie.parent[children]
    share = crowd[children] / crowd[parents]
    below, above = mass[..., children], mass[..., parents]
    return log_shares(np.swapaxes(below, -1, -2), np.swapaxes(above, -1, -2), share)


def log_shares(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """float32 [..., E, 4]: below and above float32 [..., E, 3] are the masses at an edge's
    two ends, share [E] the crowd's own share of it."""
    own = np.log((below + share[:, None]) / (above + 1.0))
    crowd_log = np.broadcast_to(np.log(share)[:, None], (*own.shape[:-1], 1))
    return np.concatenate([own, crowd_log], axis=-1).astype(np.float32, copy=False)
