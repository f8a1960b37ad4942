"""Candidates as training reads them: features at each one's moment, joined from the log.

Knows a log and the assembly that serving uses. Does not know stores, networks or sampling.
Catalogue facts are taken as of the log's end, for candidates and for items in their users'
lists. When an item changes its author, serving and training disagree until the lists have
forgotten it.
"""

from __future__ import annotations

import numpy as np

from features.store import FeatureFrame
from models.ranking.ple.features import item_columns
from models.ranking.ple.inputs import Candidates, assemble_items
from models.recipe import TrainingLog
from models.training.datasets import catalogue_items, features_at


def candidates_at(
    log: TrainingLog, users: FeatureFrame, times_ms: np.ndarray, owner: np.ndarray, item: np.ndarray
) -> dict[str, np.ndarray]:
    """`assemble_items` of R candidates, features taken at their users' times.

    users: U rows as of times_ms, int64 [U]; owner, item: int64 [R], rows of `users` and of
    `log.items`.
    """
    item_ids = log.items["video_id"].to_list()
    author_ids = log.items["author_id"].fill_null("").to_list()
    at = times_ms[owner]
    candidates = Candidates(
        owner=owner,
        item=item,
        item_features=features_at(log, "video", [item_ids[row] for row in item], at),
        author_features=features_at(log, "author", [author_ids[row] for row in item], at),
    )
    catalogue = item_columns(catalogue_items(log.items))
    author_of = dict(zip(item_ids, author_ids, strict=True))
    return assemble_items(users, candidates, catalogue, author_of, times_ms)
