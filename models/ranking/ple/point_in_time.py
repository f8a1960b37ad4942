"""Candidates as training reads them: features at each one's moment, joined from the log.

Knows a log and the assembly that serving uses. Does not know stores, networks or how
rows were chosen. What the catalogue says is taken as it stands at the log's end, for
candidates and for what stands in their users' lists alike; of a video that changes its
author, serving and training disagree until the lists have forgotten it.
"""

from __future__ import annotations

import numpy as np

from features.store import FeatureFrame
from models.ranking.ple.inputs import Candidates, assemble_videos, item_columns
from models.recipe import TrainingLog
from models.training.datasets import catalogue_items, features_at


def candidates_at(
    log: TrainingLog, users: FeatureFrame, times_ms: np.ndarray, owner: np.ndarray, item: np.ndarray
) -> dict[str, np.ndarray]:
    """`assemble_videos` of R candidates, features taken at their users' times.

    users: U rows as they stood at times_ms, int64 [U]; owner, item: int64 [R], the rows of
    `users` and of `log.items`.
    """
    video_ids = log.items["video_id"].to_list()
    author_ids = log.items["author_id"].fill_null("").to_list()
    at = times_ms[owner]
    candidates = Candidates(
        owner=owner,
        item=item,
        videos=features_at(log, "video", [video_ids[row] for row in item], at),
        authors=features_at(log, "author", [author_ids[row] for row in item], at),
    )
    items = item_columns(catalogue_items(log.items))
    author_of = dict(zip(video_ids, author_ids, strict=True))
    return assemble_videos(users, candidates, items, author_of, times_ms)
