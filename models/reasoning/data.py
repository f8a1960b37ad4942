"""The training log as users' steps, and the reasoner's settings.

Knows TrainingLog's columns. Does not know how anything is fitted (`learning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from models.reasoning.sessions import KINDS, Steps, steps
from models.recipe import TrainingLog


@dataclass(frozen=True)
class Config:
    min_steps: int = 200  # fewer engagements than this teach nothing
    min_conversions: int = 30  # of orders; below it weaker actions count as conversions
    max_items: int = 4_000  # dense tables of this side: the most engaged videos
    penalty: float = 200.0  # of the ridge from history to what came next
    cuts: int = 12  # places in one user's history that the ridge learns from
    horizon: int = 20  # steps after a cut that count as what came next
    max_judged: int = 1_000


def read_histories(log: TrainingLog, number: Mapping[str, int]) -> dict[str, Steps]:
    """Every user's steps on numbered videos, oldest first."""
    actions = log.events.filter(
        pl.col("kind").is_in(KINDS) & pl.col("video_id").is_in(list(number))
    ).with_columns(
        item=pl.col("video_id").replace_strict(dict(number), return_dtype=pl.Int64),
        strength=pl.col("kind").replace_strict(
            {kind: code for code, kind in enumerate(KINDS)}, return_dtype=pl.Int64
        ),
    )
    columns = ("item", "strength", "event_time_ms")
    grouped = actions.group_by("user_id", maintain_order=True).agg(*columns)
    return {user: steps(*lists) for user, *lists in grouped.iter_rows()}


def split_time(log: TrainingLog) -> int:
    """The time below which four fifths of the log's engagements lie."""
    times = log.events.filter(pl.col("kind").is_in(KINDS))["event_time_ms"]
    quantile = times.quantile(0.8)
    return log.until_ms if quantile is None else int(quantile)


def before(log: TrainingLog, until_ms: int) -> TrainingLog:
    """The log as it stood at `until_ms`."""
    return TrainingLog(
        log.events.filter(pl.col("event_time_ms") < until_ms), log.items, log.feedback, until_ms
    )
