"""Training-serving skew: what the ranker saw beside what training would read of that moment.

Knows served slates and a log. The other side is the training path itself: the
point-in-time join over the event log at the request's time, through the same assembly.
Does not know stores or servers.

What was on its way when the request was answered is no skew: a slate is left out where
an event of its user was admitted within `in_flight_ms` of it, a candidate where one of
its video or its author was. How many were left out is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from models.monitoring.served_log import LAYOUT
from models.ranking.ple.inputs import USER_FEATURES, VIDEO_FEATURES, assemble_users
from models.ranking.ple.point_in_time import candidates_at
from models.recipe import TrainingLog
from models.training.datasets import features_at

TOLERANCE = 1e-4  # relative to max(1, |value|): float32 on both sides


@dataclass(frozen=True)
class Skewed:
    """One feature whose served values differ: count of `compared`, sizes, and one example."""

    feature: str
    differing: int
    compared: int
    mean_size: float  # of the absolute differences that count
    largest: float
    request_id: str
    served: float
    joined: float


@dataclass(frozen=True)
class SkewReport:
    """`compared` slates and candidates; `in_flight` and `foreign` are left out of them.

    foreign: slates of another layout of features, and candidates that the catalogue of
    the log does not hold. stale: compared slates that were answered from last good rows.
    """

    slates: int
    candidates: int
    in_flight: int
    foreign: int
    stale: int
    skewed: tuple[Skewed, ...] = field(default=())

    @property
    def clean(self) -> bool:
        return not self.skewed


def skew(served: pl.DataFrame, log: TrainingLog, *, in_flight_ms: int = 2_000) -> SkewReport:
    """Compares slates (`models.monitoring.served_log.SCHEMA`) with the log's own features."""
    mine = served.filter(pl.col("layout") == LAYOUT)
    settled = _settled(mine, log, "user_id", in_flight_ms)
    slates = mine.filter(settled)
    pairs = _candidates(slates, log)
    known = pairs.filter(pl.col("item").is_not_null())
    calm = known.filter(
        _settled(known, log, "video_id", in_flight_ms)
        & _settled(known, log, "author_id", in_flight_ms)
    )
    found = [*_of_users(slates, log), *_of_videos(slates, calm, log)]
    return SkewReport(
        slates=slates.height,
        candidates=calm.height,
        in_flight=mine.height - slates.height + known.height - calm.height,
        foreign=served.height - mine.height + pairs.height - known.height,
        stale=int(slates["stale"].sum()),
        skewed=tuple(sorted(found, key=lambda each: -each.differing)),
    )


def _settled(rows: pl.DataFrame, log: TrainingLog, column: str, in_flight_ms: int) -> pl.Series:
    """bool: no event of the row's entity was admitted within `in_flight_ms` of serving."""
    moments = log.events.select(column, at="ingested_at_ms").drop_nulls().sort("at")
    asked = rows.select(column, at="served_at_ms").with_row_index("place").sort("at")
    near = asked.join_asof(
        moments.with_columns(met=pl.col("at")),
        on="at",
        by=column,
        strategy="nearest",
        tolerance=in_flight_ms,
        check_sortedness=False,  # both are sorted by `at` just above
    )
    return near.sort("place")["met"].is_null()


def _candidates(slates: pl.DataFrame, log: TrainingLog) -> pl.DataFrame:
    """One row a candidate: slate (row), slot, request_id, video_id, author_id, item (row),
    served_at_ms."""
    rows = log.items.select("video_id", "author_id", item=pl.int_range(pl.len(), dtype=pl.Int64))
    return (
        slates.with_row_index("slate")
        .select("slate", "request_id", "served_at_ms", "video_id")
        .with_columns(slot=pl.int_ranges(0, pl.col("video_id").list.len()))
        .explode("video_id", "slot")
        .drop_nulls("video_id")
        .join(rows, on="video_id", how="left", maintain_order="left")
    )


def _of_users(slates: pl.DataFrame, log: TrainingLog) -> list[Skewed]:
    if slates.is_empty():
        return []
    times = slates["served_at_ms"].to_numpy()
    joined = assemble_users(features_at(log, "user", slates["user_id"].to_list(), times), times)
    requests = slates["request_id"].to_list()
    served = np.array(slates["user_x"].to_list(), np.float32)
    found = _differences([f"user {n}" for n in USER_FEATURES], served, joined["user_x"], requests)
    history = np.array(slates["history"].to_list(), np.int64)
    same = (history == joined["history"]).mean(1, keepdims=True)
    return found + _differences(["user history, share equal"], same, np.ones_like(same), requests)


def _of_videos(slates: pl.DataFrame, pairs: pl.DataFrame, log: TrainingLog) -> list[Skewed]:
    if pairs.is_empty():
        return []
    times = slates["served_at_ms"].to_numpy()
    owner = pairs["slate"].to_numpy().astype(np.int64)
    users = features_at(log, "user", slates["user_id"].to_list(), times)
    joined = candidates_at(log, users, times, owner, pairs["item"].to_numpy())
    flat, wide = slates["video_x"].to_list(), len(VIDEO_FEATURES)
    places = zip(owner.tolist(), pairs["slot"].to_list(), strict=True)
    served = np.array([flat[s][k * wide : (k + 1) * wide] for s, k in places], np.float32)
    names = [f"video {name}" for name in VIDEO_FEATURES]
    return _differences(names, served, joined["video_x"], pairs["request_id"].to_list())


def _differences(
    names: list[str], served: np.ndarray, joined: np.ndarray, requests: list[str]
) -> list[Skewed]:
    """served, joined: float [N, F]; one entry per feature with a difference that counts."""
    size = np.abs(served.astype(float) - joined.astype(float))
    counts = ~(size <= TOLERANCE * np.maximum(1, np.abs(joined)))  # NaN counts
    found = []
    for column in np.flatnonzero(counts.any(0)):
        rows = np.flatnonzero(counts[:, column])
        worst = rows[np.argmax(np.nan_to_num(size[rows, column], nan=np.inf))]
        found.append(
            Skewed(
                feature=names[column],
                differing=len(rows),
                compared=len(served),
                mean_size=float(size[rows, column].mean()),
                largest=float(size[worst, column]),
                request_id=requests[worst],
                served=float(served[worst, column]),
                joined=float(joined[worst, column]),
            )
        )
    return found
