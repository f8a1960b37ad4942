"""Interactions as likings: one row for each pair of a user and an item they reacted to.

Knows a training log. Does not know factors. Meeting an item and liking it are separate: an
item that was only played and soon left counts as disliked, and so does one that was skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from models.recipe import TrainingLog
from models.retrieval.factorisation.config import LIKING


@dataclass(frozen=True)
class Interactions:
    """N pairs in order of time.

    user, item: int64 [N], rows of `user_ids` and `item_ids`. liking: float64 [N] in [0, 1].
    played: bool [N]; False for items that were only skipped. shown: bool [N], the pair has an
    impression. plays: float64 [V], users who
    played each item.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    user: np.ndarray
    item: np.ndarray
    liking: np.ndarray
    played: np.ndarray
    shown: np.ndarray
    plays: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def interactions(log: TrainingLog) -> Interactions:
    """The log's interactions. A pair's liking is the strongest sign among its events: the share
    that was watched, or an action of `LIKING`."""
    kinds = ("play", "skip", *LIKING)
    items = log.items.select("video_id", "duration_ms").with_row_index("item")
    watched = (pl.col("dwell_ms") / pl.col("duration_ms").clip(1)).clip(0, 1).fill_null(0.0)
    by_kind = pl.col("kind").replace_strict(LIKING, default=0.0, return_dtype=pl.Float64)
    skipped = pl.col("kind") == "skip"
    pairs = (
        log.events.lazy()
        .filter(pl.col("kind").is_in(kinds) & pl.col("video_id").is_not_null())
        .join(items.lazy(), on="video_id")
        .with_columns(
            liking=pl.when(skipped).then(0.0).otherwise(pl.max_horizontal(watched, by_kind)),
            played=~skipped,
        )
        .group_by("user_id", "item")
        .agg(
            pl.col("liking").max(),
            pl.col("played").any(),
            pl.col("impression").is_not_null().any().alias("shown"),
            pl.col("event_time_ms").min().alias("time_ms"),
        )
        .sort("time_ms", "user_id", "item")
        .collect()
    )
    user_ids = tuple(sorted(pairs["user_id"].unique().to_list()))
    row = {user_id: number for number, user_id in enumerate(user_ids)}
    item, played = pairs["item"].to_numpy().astype(np.int64), pairs["played"].to_numpy()
    return Interactions(
        user_ids=user_ids,
        item_ids=tuple(log.items["video_id"].to_list()),
        user=np.array([row[user_id] for user_id in pairs["user_id"]], np.int64),
        item=item,
        liking=pairs["liking"].to_numpy(),
        played=played,
        shown=pairs["shown"].to_numpy(),
        plays=np.bincount(item[played], minlength=log.items.height).astype(float),
    )
