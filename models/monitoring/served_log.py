"""The served features of each slate, logged for the measurement of skew.

Knows one Parquet row per slate and the files' retention: the newest `keep_files` stay. Does not
know requests (`serving.monitoring.served_features` passes slates in) or how skew is measured
(`models.monitoring.skew`).
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from models.ranking.ple.features import ITEM_FEATURES, USER_FEATURES

LAYOUT = hashlib.sha256("|".join((*USER_FEATURES, "", *ITEM_FEATURES)).encode()).hexdigest()[:8]
"""A digest of the columns' order; slates of another order cannot be compared."""

_FLOATS = pl.List(pl.Float32)
_COLUMNS: dict[str, pl.DataType] = {
    "request_id": pl.String(),
    "user_id": pl.String(),
    "served_at_ms": pl.Int64(),
    "release": pl.String(),
    "stale": pl.Boolean(),
    "layout": pl.String(),
    "user_x": _FLOATS,
    "history": pl.List(pl.Int64),
    "video_id": pl.List(pl.String),
    "video_x": _FLOATS,
    "weights": _FLOATS,
    "log_density": pl.Float64(),
    "pool_id": pl.List(pl.String),
    "pool_score": _FLOATS,
    "pool_fresh": pl.List(pl.Boolean),
    "pool_draw": pl.List(pl.Float64),
}
SCHEMA = pl.Schema(_COLUMNS)
POOL = tuple(name for name in SCHEMA if name.startswith("pool_"))


@dataclass(frozen=True)
class ServedSlate:
    """One slate with the ranker's input features.

    user_x: float32 [Fu]; history: int64 [H], hashes; video_id: the K items by slot; video_x:
    float32 [K * Fi], row by row. stale: some features were last good values. weights: float32
    [T] that ranked the slate; log_density: None unless they were drawn.

    Where the whole pool was logged, of its C candidates: pool_id; pool_score: float32 [C];
    pool_fresh: bool [C], among which exploration drew; and pool_draw, float64 [4]: temperature,
    diversity, share of exploration and its temperature. None elsewhere, null in files of before.
    """

    request_id: str
    user_id: str
    served_at_ms: int
    release: str
    stale: bool
    user_x: np.ndarray
    history: np.ndarray
    video_id: tuple[str, ...]
    video_x: np.ndarray
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    log_density: float | None = None
    pool_id: tuple[str, ...] | None = None
    pool_score: np.ndarray | None = None
    pool_fresh: np.ndarray | None = None
    pool_draw: np.ndarray | None = None


class ServedLog:
    """A folder of Parquet files, each written atomically. Several processes may write and erase;
    each of them erases every user, so a file that one wrote back is filtered by the next."""

    def __init__(self, folder: Path, *, keep_files: int = 200) -> None:
        self.folder, self._keep = folder, keep_files

    def append(self, slates: Sequence[ServedSlate]) -> None:
        """Writes these slates as one file and removes the oldest files beyond the limit."""
        rows = [{**asdict(slate), "layout": LAYOUT} for slate in slates]
        columns = {
            name: [_cell(row[name]) if name in POOL else row[name] for row in rows]
            for name in SCHEMA
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{slates[0].served_at_ms:015d}-{uuid.uuid4().hex[:8]}.parquet"
        self._write(pl.DataFrame(columns, schema=SCHEMA), name)
        for old in self._files()[: -self._keep]:
            old.unlink(missing_ok=True)

    def read(self, count: int | None = None) -> pl.DataFrame:
        """`SCHEMA`, the newest `count` slates (all when None), oldest first."""
        parts = [pl.read_parquet(path) for path in self._files()]
        # Files older than a column have nulls there.
        rows = pl.concat([pl.DataFrame(schema=SCHEMA), *parts], how="diagonal").select(
            SCHEMA.names()
        )
        rows = rows.sort("served_at_ms", "request_id")
        return rows if count is None else rows.tail(count)

    def erase(self, user_id: str) -> None:
        """Removes every slate of the user."""
        for path in self._files():
            try:
                rows = pl.read_parquet(path)
            except FileNotFoundError:  # another process removed it meanwhile
                continue
            left = rows.filter(pl.col("user_id") != user_id)
            if left.is_empty():
                path.unlink(missing_ok=True)
            elif left.height < rows.height:
                self._write(left, path.name)

    def _write(self, rows: pl.DataFrame, name: str) -> None:
        beside = self.folder / f".{name}.{uuid.uuid4().hex[:8]}.writing"
        rows.write_parquet(beside, compression="zstd")
        os.replace(beside, self.folder / name)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))


def pool_cost(rows: pl.DataFrame) -> tuple[int, float]:
    """How many of these slates have a pool, and what a pool adds to their file, in bytes each."""
    whole = rows.filter(pl.col("pool_id").is_not_null())
    if whole.is_empty():
        return 0, 0.0
    sizes = [
        _size(each) for each in (whole, whole.with_columns(pl.lit(None).alias(n) for n in POOL))
    ]
    return whole.height, (sizes[0] - sizes[1]) / whole.height


def _size(rows: pl.DataFrame) -> int:
    file = io.BytesIO()
    rows.cast({n: kind for n, kind in SCHEMA.items() if n in POOL}).write_parquet(
        file, compression="zstd"
    )
    return file.tell()


def _cell(value: np.ndarray | tuple[str, ...] | None) -> list[object] | None:
    """A list, since polars takes no column of arrays and nulls."""
    return None if value is None else np.asarray(value).tolist()
