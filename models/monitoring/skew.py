"""Training-serving skew: served features against those that training reads for that time.

Knows served slates and a log. The offline side is the training path itself: the point-in-time
join over the event log at the request's time, through the same assembly. Does not know stores
or servers.

Events in flight are not skew: a slate is left out where an event of its user was admitted
within `in_flight_ms` of it, a candidate where one of its item or author was. The report counts
what was left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from models.monitoring.served_log import LAYOUT
from models.ranking.ple.features import ITEM_FEATURES, USER_FEATURES
from models.ranking.ple.inputs import assemble_users
from models.ranking.ple.point_in_time import candidates_at
from models.recipe import TrainingLog
from models.training.datasets import features_at

TOLERANCE = 1e-4  # relative to max(1, |value|): float32 on both sides


@dataclass(frozen=True)
class FeatureSkew:
    """One feature whose served values differ: `differing` of `compared`, and the worst case."""

    feature: str
    differing: int
    compared: int
    mean_size: float  # of the absolute differences beyond the tolerance
    largest: float
    request_id: str
    served: float
    offline: float


@dataclass(frozen=True)
class SkewReport:
    """Compared slates and candidates; `in_flight` and `foreign` ones are left out of them.

    foreign: slates of another feature layout, and candidates that are not in the log's
    catalogue. stale: compared slates that were answered from last good rows.
    """

    slates: int
    candidates: int
    in_flight: int
    foreign: int
    stale: int
    skewed: tuple[FeatureSkew, ...] = field(default=())

    @property
    def clean(self) -> bool:
        return not self.skewed


def measure_skew(
    served: pl.DataFrame, log: TrainingLog, *, in_flight_ms: int = 2_000
) -> SkewReport:
    """Compares slates (`models.monitoring.served_log.SCHEMA`) with the log's features."""
    mine = served.filter(pl.col("layout") == LAYOUT)
    settled = _settled(mine, log, "user_id", in_flight_ms)
    slates = mine.filter(settled)
    pairs = _candidates(slates, log)
    known = pairs.filter(pl.col("item").is_not_null())
    settled_pairs = known.filter(
        _settled(known, log, "video_id", in_flight_ms)
        & _settled(known, log, "author_id", in_flight_ms)
    )
    found = [*_of_users(slates, log), *_of_items(slates, settled_pairs, log)]
    return SkewReport(
        slates=slates.height,
        candidates=settled_pairs.height,
        in_flight=mine.height - slates.height + known.height - settled_pairs.height,
        foreign=served.height - mine.height + pairs.height - known.height,
        stale=int(slates["stale"].sum()),
        skewed=tuple(sorted(found, key=lambda each: -each.differing)),
    )


def _settled(rows: pl.DataFrame, log: TrainingLog, column: str, in_flight_ms: int) -> pl.Series:
    """bool [N]: no event of the row's entity was admitted within `in_flight_ms` of serving."""
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
    """One row per candidate: slate (row), slot, request_id, video_id, author_id, item (row),
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


def _of_users(slates: pl.DataFrame, log: TrainingLog) -> list[FeatureSkew]:
    if slates.is_empty():
        return []
    times = slates["served_at_ms"].to_numpy()
    offline = assemble_users(features_at(log, "user", slates["user_id"].to_list(), times), times)
    requests = slates["request_id"].to_list()
    served = np.array(slates["user_x"].to_list(), np.float32)
    found = _differences([f"user {n}" for n in USER_FEATURES], served, offline["user_x"], requests)
    history = np.array(slates["history"].to_list(), np.int64)
    same = (history == offline["history"]).mean(1, keepdims=True)
    return found + _differences(["user history, share equal"], same, np.ones_like(same), requests)


def _of_items(slates: pl.DataFrame, pairs: pl.DataFrame, log: TrainingLog) -> list[FeatureSkew]:
    if pairs.is_empty():
        return []
    times = slates["served_at_ms"].to_numpy()
    owner = pairs["slate"].to_numpy().astype(np.int64)
    users = features_at(log, "user", slates["user_id"].to_list(), times)
    offline = candidates_at(log, users, times, owner, pairs["item"].to_numpy())
    flat, wide = slates["video_x"].to_list(), len(ITEM_FEATURES)
    places = zip(owner.tolist(), pairs["slot"].to_list(), strict=True)
    served = np.array([flat[s][k * wide : (k + 1) * wide] for s, k in places], np.float32)
    names = [f"video {name}" for name in ITEM_FEATURES]
    return _differences(names, served, offline["video_x"], pairs["request_id"].to_list())


def _differences(
    names: list[str], served: np.ndarray, offline: np.ndarray, requests: list[str]
) -> list[FeatureSkew]:
    """One entry per feature with a difference beyond the tolerance; float [N, F] each."""
    size = np.abs(served.astype(float) - offline.astype(float))
    counts = ~(size <= TOLERANCE * np.maximum(1, np.abs(offline)))  # NaN counts
    found = []
    for column in np.flatnonzero(counts.any(0)):
        rows = np.flatnonzero(counts[:, column])
        worst = rows[np.argmax(np.nan_to_num(size[rows, column], nan=np.inf))]
        found.append(
            FeatureSkew(
                feature=names[column],
                differing=len(rows),
                compared=len(served),
                mean_size=float(size[rows, column].mean()),
                largest=float(size[worst, column]),
                request_id=requests[worst],
                served=float(served[worst, column]),
                offline=float(offline[worst, column]),
            )
        )
    return found
