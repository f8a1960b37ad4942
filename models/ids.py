"""Ids as numbers: the hashes that tensors carry in their place.

Knows strings. Does not know users, items or models. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from streams.contract.topics import entity_hash


@lru_cache(maxsize=1 << 18)
def id_hash(entity_id: str) -> int:
    """An id as a positive int64; 0 stands for "none"."""
    return (entity_hash(entity_id) >> 1) or 1 if entity_id else 0


def id_hashes(ids: Sequence[str]) -> np.ndarray:
    """`id_hash` of each id; int64 [N]."""
    return np.fromiter((id_hash(entity_id) for entity_id in ids), np.int64)
