"""The training log as users' steps.

Knows TrainingLog's columns. Does not know how anything is fitted (`train`).
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from models.reasoning.sessions import KINDS, EngagementSteps, fold_steps
from models.recipe import TrainingLog
from streams.contract.declaration import contract


def engagements(log: TrainingLog) -> pl.DataFrame:
    """The log's events of KINDS. A declared signal stands under the kind that it counts as."""
    counts_as = contract().signals.stand_ins
    kind = pl.col("kind")
    return log.events.with_columns(kind.replace(dict(counts_as)) if counts_as else kind).filter(
        kind.is_in(KINDS)
    )


def read_histories(log: TrainingLog, number: Mapping[str, int]) -> dict[str, EngagementSteps]:
    """Every user's steps on numbered items, oldest first. number: video_id -> item number."""
    actions = (
        engagements(log)
        .filter(pl.col("video_id").is_in(list(number)))
        .with_columns(
            item=pl.col("video_id").replace_strict(dict(number), return_dtype=pl.Int64),
            strength=pl.col("kind").replace_strict(
                {kind: code for code, kind in enumerate(KINDS)}, return_dtype=pl.Int64
            ),
        )
    )
    columns = ("item", "strength", "event_time_ms")
    grouped = actions.group_by("user_id", maintain_order=True).agg(*columns)
    return {user: fold_steps(*lists) for user, *lists in grouped.iter_rows()}
