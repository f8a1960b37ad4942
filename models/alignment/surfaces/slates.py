"""Slates of one surface with matured feedback, as arrays of candidates with graded outcomes.

Knows feedback's columns. Does not know models. Only candidates that were on screen are included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import polars as pl

from models.recipe import TrainingLog

ORDERED = "order"
CLICKS = ("query_click", "play", "long_view", "like", "follow")


@dataclass(frozen=True)
class SurfaceSlates:
    """G slates of up to C candidates, in order of time.

    users, time_ms: [G]; item, query: str or None [G, C]; slot: int64 [G, C]; real: bool [G, C],
    not padding; grade: int64 [G, C], 0 passed over, 1 an action, 2 an order.
    """

    users: np.ndarray
    time_ms: np.ndarray
    item: np.ndarray
    query: np.ndarray
    slot: np.ndarray
    real: np.ndarray
    grade: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def acted(self) -> np.ndarray:
        return np.asarray((self.grade > 0) & self.real)

    @property
    def ranked(self) -> np.ndarray:
        """bool [G]: whether a model ordered the slate; these surfaces have no other arm."""
        return np.ones(len(self), bool)

    def take(self, rows: np.ndarray) -> SurfaceSlates:
        return SurfaceSlates(*(getattr(self, each.name)[rows] for each in fields(self)))


def surface_slates(log: TrainingLog, surface: str, *, count: int) -> SurfaceSlates:
    """The newest `count` slates of `surface` that were seen."""
    seen = log.feedback
    if {"surface", "shown_at_ms"} <= set(seen.columns):
        seen = seen.filter((pl.col("surface") == surface) & pl.col("shown_at_ms").is_not_null())
    else:
        return _spread(pl.DataFrame(schema=_EMPTY), pl.DataFrame(schema=_EMPTY))
    clicked = [pl.col(name).fill_null(False) for name in CLICKS if name in seen.columns]
    grade = pl.when(pl.col(ORDERED)).then(2).when(pl.any_horizontal(clicked)).then(1).otherwise(0)
    seen = seen.with_columns(grade=grade.cast(pl.Int64))
    requests = seen.group_by("request_id", maintain_order=True).agg(
        pl.col("user_id", "served_at_ms").first()
    )
    requests = requests.sort("served_at_ms", "request_id").tail(count).with_row_index("group")
    seen = seen.join(requests.select("request_id", "group"), on="request_id").sort("group", "slot")
    return _spread(requests, seen)


_EMPTY = {
    "user_id": pl.String,
    "served_at_ms": pl.Int64,
    "group": pl.UInt32,
    "video_id": pl.String,
    "query": pl.String,
    "slot": pl.Int32,
    "grade": pl.Int64,
}


def _spread(requests: pl.DataFrame, seen: pl.DataFrame) -> SurfaceSlates:
    place = seen.select(place=pl.int_range(pl.len()).over("group"))["place"]
    group, column = (each.to_numpy().astype(np.int64) for each in (seen["group"], place))
    shape = (requests.height, int(column.max(initial=-1)) + 1)

    def filled(values: Sequence[object] | np.ndarray, fill: object, dtype: type) -> np.ndarray:
        out: np.ndarray = np.full(shape, fill, dtype)
        out[group, column] = values
        return out

    return SurfaceSlates(
        users=requests["user_id"].to_numpy().astype(object),
        time_ms=requests["served_at_ms"].to_numpy().astype(np.int64),
        item=filled(np.array(seen["video_id"].to_list(), object), None, object),
        query=filled(np.array(seen["query"].to_list(), object), None, object),
        slot=filled(seen["slot"].to_numpy(), 0, np.int64),
        real=filled(np.ones(seen.height, bool), False, np.bool_),
        grade=filled(seen["grade"].to_numpy(), 0, np.int64),
    )
