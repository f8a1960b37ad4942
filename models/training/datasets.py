"""Training data: the log, the catalogue and matured feedback up to one moment.

Knows the readers of the folders and the one rule for splitting a log in time. Does not know any
one model. Data newer than `until_ms`, by event time or by arrival, is never included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from features.offline.point_in_time.join import features_as_of
from features.store import EntityName, FeatureFrame
from models.recipe import NotEnoughData, TrainingLog
from models.release.store import Quarantine
from streams.catalogue import CatalogueLog
from streams.contract.events import CatalogueItem
from streams.event_log import EventLog
from streams.feedback.store import read_matured


def load_training_log(
    log_dir: Path,
    feedback_dir: Path,
    until_ms: int,
    quarantined: Sequence[Quarantine] = (),
    blocked_queries: Sequence[str] = (),
) -> TrainingLog:
    """Data as of `until_ms`: admitted events, the catalogue, matured feedback.

    `quarantined`: intervals of rolled-back releases, whose feedback is left out
    (`ReleaseStore.quarantined`). `blocked_queries`: see `TrainingLog`.
    """
    events = EventLog(log_dir).read(until_ms=until_ms)
    log = TrainingLog(
        events=events.filter(pl.col("ingested_at_ms") < until_ms),
        items=CatalogueLog(log_dir).load().to_frame(),
        feedback=read_matured(feedback_dir, 0, until_ms),
        until_ms=until_ms,
        blocked_queries=tuple(blocked_queries),
    )
    return without_quarantine(log, quarantined)


def log_until(log: TrainingLog, until_ms: int) -> TrainingLog:
    """The log as of `until_ms`.

    Keeps events that had happened and arrived, items that had been created, and feedback that
    had matured.
    """
    return replace(
        log,
        events=log.events.filter(
            (pl.col("event_time_ms") < until_ms) & (pl.col("ingested_at_ms") < until_ms)
        ),
        items=log.items.filter(pl.col("created_ms") < until_ms),
        feedback=log.feedback.filter(pl.col("matured_at_ms") < until_ms),
        until_ms=until_ms,
    )


def split_time_ms(
    log: TrainingLog, share: float = 0.8, *, kinds: Sequence[str] | None = None
) -> int:
    """The event time before which `share` of the log's events lie, of `kinds` where given.

    Raises `NotEnoughData` where there is no such event.
    """
    events = log.events if kinds is None else log.events.filter(pl.col("kind").is_in(kinds))
    if events.is_empty():
        what = "" if kinds is None else f"{', '.join(kinds)} "
        raise NotEnoughData(f"the log holds no {what}events: replay or produce some first")
    times = events["event_time_ms"].sort()
    return int(times[min(int(len(times) * share), len(times) - 1)])


def without_quarantine(log: TrainingLog, quarantined: Sequence[Quarantine]) -> TrainingLog:
    """The log without the feedback of rolled-back releases."""
    feedback = log.feedback
    for entry in quarantined:
        inside = pl.col("served_at_ms").is_between(
            entry.since_ms, entry.until_ms, closed="left"
        ) & (pl.col("release") == entry.release_id)
        feedback = feedback.filter(~inside)
    return replace(log, feedback=feedback)


def features_at(
    log: TrainingLog, entity: EntityName, ids: Sequence[str], times_ms: np.ndarray
) -> FeatureFrame:
    """The entity's features as an online reader saw them at each time; N rows in order.

    times_ms: int64 [N].
    """
    labels = pl.DataFrame({f"{entity}_id": list(ids), "time_ms": times_ms})
    frame = features_as_of(log.events, labels, entity)
    if frame.ids != tuple(ids):
        raise AssertionError("a point-in-time join must keep the labels' order")
    return frame


def catalogue_items(items: pl.DataFrame) -> list[CatalogueItem]:
    """The rows of `TrainingLog.items` as catalogue items, in their order; nulls are absent."""
    return [
        CatalogueItem.model_validate({n: value for n, value in row.items() if value is not None})
        for row in items.drop("available", strict=False).iter_rows(named=True)
    ]
