"""Merging a few sorted parts into many: what keeps a fold from sorting whole rows again.

Knows sorted keys and positions. Does not know what the parts mean. Rows come sorted from
the store; a batch brings little. So the batch alone is sorted, and finding its places
costs a search per new part and one pass over the old ones.
"""

from __future__ import annotations

import numpy as np


def newest_first_key(group: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int64 that sort by group, then by falling time (ms). The pair must need under 64 bits:
    two million groups over 140 years do not."""
    if len(time) == 0:
        return group
    age = time.max() - time
    return np.asarray((group << int(age.max()).bit_length()) + age)


def merged_order(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Places in `concatenate([old, new])` that bring both into one ascending order.

    `old` is ascending already. Of equals, old ones come first.
    """
    by_key = np.argsort(new, kind="stable")
    at = np.searchsorted(old, new[by_key], side="right") + np.arange(len(new))
    order = np.empty(len(old) + len(new), np.int64)
    from_old = np.ones(len(order), bool)
    from_old[at] = False
    order[at] = by_key + len(old)
    order[from_old] = np.arange(len(old))
    return order


def ties_by_falling_hash(order: np.ndarray, key: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """`order` with parts of equal key put by falling hash; `key` and `hashes` by place."""
    in_order = key[order]
    tied = np.zeros(len(order), bool)
    tied[1:] = in_order[1:] == in_order[:-1]
    if not tied.any():
        return order
    tied[:-1] |= tied[1:]
    at = np.flatnonzero(tied)
    places = order[at]
    order[at] = places[np.lexsort((~hashes[places], key[places]))]
    return order


def rank(sorted_group: np.ndarray) -> np.ndarray:
    """Each element's place within its run of equal values."""
    starts = np.ones(len(sorted_group), bool)
    starts[1:] = sorted_group[1:] != sorted_group[:-1]
    first = np.flatnonzero(starts)
    lengths = np.diff(np.append(first, len(sorted_group)))
    return np.asarray(np.arange(len(sorted_group)) - np.repeat(first, lengths))
