"""Popularity and last good features of every available item.

Knows item rows, how popularity follows from them, and the copy on disk. Does not know
stages or requests. Stages rank by this snapshot while the store or a model is down.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, Field

from features.store import FeatureFrame, FeatureStore, StoreDown
from serving.pipeline.frames import absent_rows, concat_frames, list_column, take_rows
from serving.pipeline.items import RowNumbers, best_places
from serving.state.catalogue import LiveCatalogue
from serving.state.genre_index import GenreIndex
from streams.contract.bounds import Count
from streams.contract.clock import Clock
from streams.contract.declaration import contract
from streams.telemetry import set_aside

_LOG = logging.getLogger(__name__)
_READ_ROWS = 2_000
_CLICKED_QUERIES_KEPT = 20  # per item
# Weight of an action in an item's popularity, relative to one play. A declared signal has that of
# the kind that it counts as (`Signals.stand_ins`).
_ACTION_WEIGHT = {"play": 1.0, "long_view": 2.0, "like": 3.0, "follow": 3.0, "order": 4.0}


@dataclass(frozen=True)
class Popularity:
    """Every available item at one moment. `score` float32 [N], never NaN.

    `frame` is None when the snapshot was loaded from disk: scores survive a restart,
    feature columns do not.
    """

    at_ms: int
    ids: tuple[str, ...]
    row: dict[str, int]
    score: np.ndarray
    shown: np.ndarray  # int64 [N]: times shown since the log began
    clicked: dict[str, list[str]]  # item -> queries clicked under it, most frequent first
    frame: FeatureFrame | None = None
    memo: dict[str, tuple[Any, ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def by_row(self, numbers: RowNumbers) -> tuple[np.ndarray, np.ndarray]:
        """score (float32) and shown (int64) by row of the catalogue's table; 0 for items that are
        not in the snapshot, and in the last place, for `UNKNOWN`."""
        known, score, shown = self.memo.get("by_row", (None, EMPTY.score, EMPTY.shown))
        if known is not numbers:
            rows = numbers.rows_of(self.ids)
            size, present = len(numbers) + 1, rows >= 0
            score, shown = np.zeros(size, np.float32), np.zeros(size, np.int64)
            score[rows[present]] = self.score[present]
            shown[rows[present]] = self.shown[present]
            self.memo["by_row"] = numbers, score, shown
        if (more := len(numbers) + 1 - len(score)) > 0:  # new items, which have no actions here
            score, shown = np.pad(score, (0, more)), np.pad(shown, (0, more))
            self.memo["by_row"] = numbers, score, shown
        return score, shown

    def order_in(self, index: GenreIndex, count: int) -> np.ndarray:
        """int64: rows of the `count` most popular available items, at least; all where there are
        fewer. Most popular first; ties keep the order of ids."""
        order: np.ndarray
        kept, most, order = self.memo.get("order", (None, 0, EMPTY.shown))
        if kept is not index or most < count:
            score, _ = self.by_row(index.numbers)
            order = index.rows[best_places(score[index.rows], count)]
            self.memo["order"] = index, count, order
        return order

    def newest_rarely_shown(self, index: GenreIndex, shown_below: int, count: int) -> np.ndarray:
        """int64: rows of the `count` newest items among those shown fewer than `shown_below`
        times, newest first."""
        newest: np.ndarray
        kept, asked, newest = self.memo.get("newest", (None, (0, 0), EMPTY.shown))
        if kept is not index or asked != (shown_below, count):
            _, shown = self.by_row(index.numbers)
            rarely = np.flatnonzero(shown[index.rows] < shown_below)
            newest = index.rows[rarely[best_places(index.created_ms[rarely], count)]]
            self.memo["newest"] = index, (shown_below, count), newest
        return newest

    def scores_of(self, item_ids: Sequence[str]) -> np.ndarray:
        """float32 [len(item_ids)]; 0 for an item that is not in the snapshot."""
        rows = [self.row.get(item_id, -1) for item_id in item_ids]
        padded = np.append(self.score, np.float32(0))
        return np.asarray(padded[rows], dtype=np.float32)

    def rows_of(self, item_ids: Sequence[str]) -> FeatureFrame:
        """The items' last good feature rows; absent rows for items not in the snapshot."""
        known = [item_id for item_id in item_ids if item_id in self.row]
        if self.frame is None or not known:
            return absent_rows("video", item_ids)
        if len(known) == len(item_ids):
            return take_rows(self.frame, [self.row[item_id] for item_id in item_ids])
        unknown = sorted(set(item_ids) - self.row.keys())
        known_rows = take_rows(self.frame, [self.row[item_id] for item_id in known])
        both = concat_frames([known_rows, absent_rows("video", unknown)])
        row = {item_id: at for at, item_id in enumerate(both.ids)}
        return take_rows(both, [row[item_id] for item_id in item_ids])


EMPTY = Popularity(0, (), {}, np.zeros(0, np.float32), np.zeros(0, np.int64), {})


def popularity_of(frame: FeatureFrame, at_ms: int) -> Popularity:
    """Score: log(1 + weighted actions of the last 7 days + 0.1 * weighted actions of all time)."""
    total = np.zeros(len(frame), np.float64)
    stand_ins = contract().signals.stand_ins
    declared = {name: _ACTION_WEIGHT[kind] for name, kind in stand_ins.items()}
    for kind, weight in (_ACTION_WEIGHT | declared).items():
        for window, share in (("7d", 1.0), ("all", 0.1)):
            column = frame.columns.get(f"{kind}_count_{window}")
            if column is not None:
                total += weight * share * np.asarray(column, np.float64)
    shown = np.asarray(frame.columns.get("shown_count_all", np.zeros(len(frame))), np.int64)
    return Popularity(
        at_ms=at_ms,
        ids=frame.ids,
        row={item_id: row for row, item_id in enumerate(frame.ids)},
        score=np.log1p(total).astype(np.float32),
        shown=shown,
        clicked=_clicked_queries(frame),
        frame=frame,
    )


def most_frequent(values: Sequence[str]) -> list[str]:
    """Distinct values, most frequent first; ties keep the order of first appearance."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return sorted(counts, key=lambda value: -counts[value])


class PopularityCache:
    """Refreshes `Popularity` on its own thread and keeps the last good one on disk."""

    def __init__(
        self,
        store: FeatureStore,
        catalogue: LiveCatalogue,
        clock: Clock,
        path: Path | None = None,
        *,
        every_s: float = 3.0,
        save_every_s: float = 30.0,
        saves: bool = True,
    ) -> None:
        """`path`: read now, and written if `saves`; several processes may read one file."""
        self._store, self._catalogue, self._clock = store, catalogue, clock
        self._path, self._every_s, self._save_every_s = path, every_s, save_every_s
        self._saves = saves
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.stale = True
        self.current = _load(path) if path is not None else EMPTY

    def refresh(self) -> bool:
        """Reads every available item once. While the store is down: keeps the old, returns False."""
        ids = list(self._catalogue.index().ids)
        now_ms = self._clock.now_ms()
        try:
            frames = [
                self._store.read("video", ids[at : at + _READ_ROWS], now_ms)
                for at in range(0, len(ids), _READ_ROWS)
            ]
        except StoreDown as error:
            self.stale = True
            _LOG.warning("popularity is not refreshed, the last snapshot stays in use: %s", error)
            return False
        found = popularity_of(concat_frames(frames), now_ms) if frames else EMPTY
        found.by_row(self._catalogue.table.numbers)  # here, so that no request computes it
        self.current = found
        self.stale = False
        return True

    def save(self) -> None:
        """Writes a temporary file and renames it, so that a crash leaves a complete snapshot."""
        current = self.current
        if self._path is None or not self._saves or not current.ids:
            return
        body = {
            "at_ms": current.at_ms,
            "ids": current.ids,
            "score": current.score.tolist(),
            "shown": current.shown.tolist(),
            "clicked": current.clicked,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".writing")
        temporary.write_bytes(orjson.dumps(body))
        os.replace(temporary, self._path)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._refresh_loop, name="popularity", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
        if not self.stale:
            self.save()

    def _refresh_loop(self) -> None:
        ticks_to_save = max(1, round(self._save_every_s / self._every_s))
        tick = 0
        while not self._stop.is_set():
            try:
                if self.refresh() and tick % ticks_to_save == 0:
                    self.save()
            except Exception:
                self.stale = True
                _LOG.exception("refreshing popularity failed")
            tick += 1
            self._stop.wait(self._every_s)


def _clicked_queries(frame: FeatureFrame) -> dict[str, list[str]]:
    found = (
        (item_id, list_column(frame, "clicked_query", row)) for row, item_id in enumerate(frame.ids)
    )
    return {
        item_id: most_frequent(queries)[:_CLICKED_QUERIES_KEPT]
        for item_id, queries in found
        if queries
    }


def _load(path: Path) -> Popularity:
    """The snapshot on disk; empty if there is none, or none that can be read."""
    try:
        stored = _StoredPopularity.model_validate_json(path.read_bytes())
        if not len(stored.ids) == len(stored.score) == len(stored.shown):
            raise ValueError("ids, score and shown differ in length")
    except FileNotFoundError:
        return EMPTY
    except (OSError, ValueError) as error:
        set_aside("popularity", path, error)
        return EMPTY
    return Popularity(
        at_ms=stored.at_ms,
        ids=stored.ids,
        row={item_id: row for row, item_id in enumerate(stored.ids)},
        score=np.asarray(stored.score, np.float32),
        shown=np.asarray(stored.shown, np.int64),
        clicked=stored.clicked,
    )


class _StoredPopularity(BaseModel):
    """The file's form."""

    at_ms: Count
    ids: tuple[str, ...]
    score: list[Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]]
    shown: list[Count]
    clicked: dict[str, list[str]]
