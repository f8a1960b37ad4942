"""What the ranker saw of each slate, kept as it was served: the log that skew is judged by.

Knows one Parquet row a slate and how files are kept. Does not know requests
(`serving.monitoring.served_features` hands slates in) nor how skew is judged
(`models.monitoring.skew`). Bounded: the newest `keep_files` files stay.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from models.ranking.ple.inputs import USER_FEATURES, VIDEO_FEATURES

LAYOUT = hashlib.sha256("|".join((*USER_FEATURES, "", *VIDEO_FEATURES)).encode()).hexdigest()[:8]
"""Names the columns' order: a slate that another assembly made cannot be compared."""

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
}
SCHEMA = pl.Schema(_COLUMNS)


@dataclass(frozen=True)
class ServedSlate:
    """One slate as the ranker saw it.

    user_x [Fu]; history int64 [H], hashes; video_id: the K videos by slot; video_x
    float32 [K * Fv], row by row. stale: some features were the last that could be read.
    weights: float32 [T], as they ranked the slate; log_density: None unless they were drawn.
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


class ServedLog:
    """A folder of Parquet files, each whole from its first moment. One writer."""

    def __init__(self, folder: Path, *, keep_files: int = 200) -> None:
        self.folder, self._keep = folder, keep_files

    def append(self, slates: Sequence[ServedSlate]) -> None:
        """One file of these slates; the oldest files beyond the limit go."""
        rows = [{**asdict(slate), "layout": LAYOUT} for slate in slates]
        columns = {name: [row[name] for row in rows] for name in SCHEMA}
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{slates[0].served_at_ms:015d}-{uuid.uuid4().hex[:8]}.parquet"
        self._write(pl.DataFrame(columns, schema=SCHEMA), name)
        for old in self._files()[: -self._keep]:
            old.unlink(missing_ok=True)

    def read(self, count: int | None = None) -> pl.DataFrame:
        """`SCHEMA`, the newest `count` slates (all when None), oldest first."""
        parts = [pl.read_parquet(path) for path in self._files()]
        # Files of before a column have nulls there.
        rows = pl.concat([pl.DataFrame(schema=SCHEMA), *parts], how="diagonal").select(
            SCHEMA.names()
        )
        rows = rows.sort("served_at_ms", "request_id")
        return rows if count is None else rows.tail(count)

    def erase(self, user_id: str) -> None:
        """Removes every slate of the user."""
        for path in self._files():
            rows = pl.read_parquet(path)
            left = rows.filter(pl.col("user_id") != user_id)
            if left.is_empty():
                path.unlink(missing_ok=True)
            elif left.height < rows.height:
                self._write(left, path.name)

    def _write(self, rows: pl.DataFrame, name: str) -> None:
        beside = self.folder / f".{name}.writing"
        rows.write_parquet(beside, compression="zstd")
        os.replace(beside, self.folder / name)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))
