"""Interactions as likings: one row for each pair of a user and an item they reacted to.

Knows a training log. Does not know factors. Meeting an item and liking it are separate: an
item that was only played and soon left counts as disliked, and so does one that was skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from models.ids import id_hashes
from models.recipe import TrainingLog
from models.retrieval.factorisation.config import LIKING

ACTIONS = ("long_view", "like", "follow", "order")
"""What may follow a play; columns of `Interactions.actions`."""


@dataclass(frozen=True)
class Interactions:
    """N pairs in order of time.

    user, item: int64 [N], rows of `user_ids` and `item_ids`. liking: float64 [N] in [0, 1].
    played: bool [N]; False for items that were only skipped. actions: bool [N, 4], `ACTIONS`.
    plays: float64 [V], users who played each item.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    user: np.ndarray
    item: np.ndarray
    liking: np.ndarray
    played: np.ndarray
    actions: np.ndarray
    plays: np.ndarray

    @cached_property
    def user_hash(self) -> np.ndarray:
        """int64 [U]"""
        return id_hashes(self.user_ids)

    @cached_property
    def item_hash(self) -> np.ndarray:
        """int64 [V]"""
        return id_hashes(self.item_ids)

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
            *((pl.col("kind") == action).any().alias(action) for action in ACTIONS),
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
        actions=pairs.select(ACTIONS).to_numpy(),
        plays=np.bincount(item[played], minlength=log.items.height).astype(float),
    )


@dataclass(frozen=True)
class Shown:
    """S impressions of the feed with their outcome; rows as in `Interactions`.

    user, item, slot, user_hash, item_hash: int64 [S]; played: bool [S].
    """

    user: np.ndarray
    item: np.ndarray
    user_hash: np.ndarray
    item_hash: np.ndarray
    slot: np.ndarray
    played: np.ndarray


def shown(log: TrainingLog, pairs: Interactions) -> Shown:
    """The impressions that were on screen, of users with an interaction."""
    users = pl.DataFrame({"user_id": pairs.user_ids, "user": np.arange(len(pairs.user_ids))})
    items = pl.DataFrame({"video_id": pairs.item_ids, "item": np.arange(len(pairs.item_ids))})
    seen = log.feedback.filter(
        (pl.col("surface") == "feed") & pl.col("shown_at_ms").is_not_null()
    ).select("user_id", "video_id", "slot", "play", "impression_id")
    seen = seen.join(users, on="user_id").join(items, on="video_id").sort("impression_id")
    user, item = seen["user"].to_numpy(), seen["item"].to_numpy()
    slot = seen["slot"].to_numpy().astype(np.int64)
    hashes = pairs.user_hash[user], pairs.item_hash[item]
    return Shown(user, item, *hashes, slot, seen["play"].to_numpy().astype(bool))
