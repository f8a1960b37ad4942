"""Interactions as likings: one row for each pair of a user and an item they reacted to.

Knows a training log. Does not know factors. Meeting an item and liking it are separate: an
item that was only played and soon left counts as disliked, and so does one that was skipped.
Declared signals count by their role (`models.training.actions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from models.ids import id_hashes
from models.recipe import TrainingLog
from models.retrieval.factorisation.config import BY_ROLE, LIKING
from models.training.actions import (
    PLAY,
    disliking_signals,
    done,
    opening,
    opening_signals,
    positive_signals,
    with_value_liking,
)
from streams.contract.signals import Signal

ACTIONS = ("long_view", "like", "follow", "order")
"""What may follow a play, of the shipped signals."""


@dataclass(frozen=True)
class Interactions:
    """N pairs in order of time.

    user, item: int64 [N], rows of `user_ids` and `item_ids`. liking: float64 [N] in [0, 1].
    played: bool [N]; False for items that were only skipped. actions: bool [N, A], one column for
    each of `action_names`. plays: float64 [V], users who played each item. opened_by: the columns
    of feedback that tell whether an impression was opened.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    user: np.ndarray
    item: np.ndarray
    liking: np.ndarray
    played: np.ndarray
    actions: np.ndarray
    plays: np.ndarray
    action_names: tuple[str, ...] = ACTIONS
    opened_by: tuple[str, ...] = (PLAY,)

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
    that was watched, or an action of `LIKING`. A declared signal counts by its role, but the last
    stated value decides where there is one, and a declared dislike decides over all others."""
    positive, disliked = positive_signals(), disliking_signals()
    opened_by = opening_signals(log)
    liking_of = LIKING | {
        signal.name: 0.0 if signal.name in opened_by else BY_ROLE[str(signal.role)]
        for signal in positive
        if "value" not in signal.payload
    }
    actions = _action_names(opening(log), positive)
    valued = {signal.name for signal in positive if "value" in signal.payload}
    kinds = ("play", "skip", *liking_of, *valued, *disliked)
    items = log.items.select("video_id", "duration_ms").with_row_index("item")
    watched = (pl.col("dwell_ms") / pl.col("duration_ms").clip(1)).clip(0, 1).fill_null(0.0)
    by_kind = pl.col("kind").replace_strict(liking_of, default=0.0, return_dtype=pl.Float64)
    skipped = pl.col("kind").is_in(["skip", *disliked])
    stated = pl.col("value_liking").sort_by("event_time_ms").drop_nulls().last()
    strongest = pl.coalesce(stated, pl.col("liking").max())
    pairs = (
        with_value_liking(log.events)
        .lazy()
        .filter(pl.col("kind").is_in(kinds) & pl.col("video_id").is_not_null())
        .join(items.lazy(), on="video_id")
        .with_columns(
            liking=pl.when(skipped).then(0.0).otherwise(pl.max_horizontal(watched, by_kind)),
            played=~skipped,
        )
        .group_by("user_id", "item")
        .agg(
            pl.when(pl.col("kind").is_in(disliked).any())
            .then(0.0)
            .otherwise(strongest)
            .alias("liking"),
            pl.col("played").any(),
            *(done(name, valued=name in valued).any().alias(name) for name in actions),
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
        actions=pairs.select(actions).to_numpy(),
        plays=np.bincount(item[played], minlength=log.items.height).astype(float),
        action_names=actions,
        opened_by=(PLAY, *opened_by),
    )


def _action_names(opened_by: str, positive: tuple[Signal, ...]) -> tuple[str, ...]:
    """What may follow the opening of an item; without plays, a play is one of them."""
    every = (PLAY, *ACTIONS, *(signal.name for signal in positive))
    return tuple(name for name in every if name != opened_by)


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
    """The impressions that were on screen, of users with an interaction. One counts as played where
    it was opened."""
    users = pl.DataFrame({"user_id": pairs.user_ids, "user": np.arange(len(pairs.user_ids))})
    items = pl.DataFrame({"video_id": pairs.item_ids, "item": np.arange(len(pairs.item_ids))})
    opened = [name for name in pairs.opened_by if name in log.feedback.columns]
    seen = log.feedback.filter(
        (pl.col("surface") == "feed") & pl.col("shown_at_ms").is_not_null()
    ).select(
        "user_id",
        "video_id",
        "slot",
        pl.any_horizontal(pl.col(opened).fill_null(False)).alias("play"),
        "impression_id",
    )
    seen = seen.join(users, on="user_id").join(items, on="video_id").sort("impression_id")
    user, item = seen["user"].to_numpy(), seen["item"].to_numpy()
    slot = seen["slot"].to_numpy().astype(np.int64)
    hashes = pairs.user_hash[user], pairs.item_hash[item]
    return Shown(user, item, *hashes, slot, seen["play"].to_numpy().astype(bool))
