"""The last good answer: what is served when the store or a model does not answer.

Knows a snapshot of every video's features and its popularity, kept in memory and on
disk, and the last row read of each recent user. Does not know stages or requests.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from features.definitions import DEFINITIONS
from features.rows.finalize import finish_blobs
from features.store import EntityName, FeatureFrame, FeatureStore, StoreDown
from serving.pipeline.query import take, texts
from serving.state.catalogue import LiveCatalogue
from streams.contract.clock import Clock

_LOG = logging.getLogger(__name__)
_READ_ROWS = 2_000
# What an action says of a video's popularity, relative to one play.
_ACTION_WEIGHT = {"play": 1.0, "long_view": 2.0, "like": 3.0, "follow": 3.0, "order": 4.0}


@dataclass(frozen=True)
class Popularity:
    """Every available video at one moment. `score` float32 [N], never NaN.

    `frame` is None when the snapshot came from disk: scores survive a restart,
    feature columns do not.
    """

    at_ms: int
    ids: tuple[str, ...]
    row: dict[str, int]
    score: np.ndarray
    shown: np.ndarray  # int64 [N]: times shown, ever
    clicked: dict[str, list[str]]  # video -> queries clicked under it, most frequent first
    frame: FeatureFrame | None = None

    def of(self, video_ids: Sequence[str]) -> np.ndarray:
        """float32 scores of these videos; 0 for one that the snapshot does not know."""
        rows = [self.row.get(video_id, -1) for video_id in video_ids]
        padded = np.append(self.score, np.float32(0))
        return np.asarray(padded[rows], dtype=np.float32)

    def rows_of(self, video_ids: Sequence[str]) -> FeatureFrame:
        """The last good features of these videos; absent rows for unknown ones."""
        known = [video_id for video_id in video_ids if video_id in self.row]
        if self.frame is None or not known:
            return absent("video", video_ids)
        if len(known) == len(video_ids):
            return take(self.frame, [self.row[video_id] for video_id in video_ids])
        unknown = sorted(set(video_ids) - self.row.keys())
        parts = [take(self.frame, [self.row[v] for v in known]), absent("video", unknown)]
        both = joined(parts)
        row = {video_id: at for at, video_id in enumerate(both.ids)}
        return take(both, [row[video_id] for video_id in video_ids])


def absent(entity: EntityName, ids: Sequence[str]) -> FeatureFrame:
    """Rows as the store gives them for entities that it has never seen."""
    return finish_blobs(DEFINITIONS[entity], ids, [None] * len(ids), 0)


EMPTY = Popularity(0, (), {}, np.zeros(0, np.float32), np.zeros(0, np.int64), {})


def popularity_of(frame: FeatureFrame, at_ms: int) -> Popularity:
    """log(1 + the last week's weighted actions + a tenth of all before)."""
    total = np.zeros(len(frame), np.float64)
    for kind, weight in _ACTION_WEIGHT.items():
        for window, share in (("7d", 1.0), ("all", 0.1)):
            column = frame.columns.get(f"{kind}_count_{window}")
            if column is not None:
                total += weight * share * np.asarray(column, np.float64)
    shown = np.asarray(frame.columns.get("shown_count_all", np.zeros(len(frame))), np.int64)
    return Popularity(
        at_ms=at_ms,
        ids=frame.ids,
        row={video_id: row for row, video_id in enumerate(frame.ids)},
        score=np.log1p(total).astype(np.float32),
        shown=shown,
        clicked=_clicked(frame),
        frame=frame,
    )


def most_frequent(values: Sequence[str]) -> list[str]:
    """Distinct values, most frequent first; among equals the one seen first."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return sorted(counts, key=lambda value: -counts[value])


def _clicked(frame: FeatureFrame) -> dict[str, list[str]]:
    found = ((vid, texts(frame, "clicked_query", row)) for row, vid in enumerate(frame.ids))
    return {vid: most_frequent(queries)[:20] for vid, queries in found if queries}


class Snapshot:
    """Keeps `Popularity` fresh on a thread of its own, and the last good one on disk."""

    def __init__(
        self,
        store: FeatureStore,
        catalogue: LiveCatalogue,
        clock: Clock,
        path: Path | None = None,
        *,
        every_s: float = 3.0,
        save_every_s: float = 30.0,
    ) -> None:
        self._store, self._catalogue, self._clock = store, catalogue, clock
        self._path, self._every_s, self._save_every_s = path, every_s, save_every_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.stale = True
        self.now = _load(path) if path is not None else EMPTY

    def refresh(self) -> bool:
        """Reads every available video once. False, and the old one stays, when the store is down."""
        ids = list(self._catalogue.index().ids)
        now_ms = self._clock.now_ms()
        try:
            parts = [
                self._store.read("video", ids[at : at + _READ_ROWS], now_ms)
                for at in range(0, len(ids), _READ_ROWS)
            ]
        except StoreDown as error:
            self.stale = True
            _LOG.warning("popularity stays as it was: %s", error)
            return False
        self.now = popularity_of(joined(parts), now_ms) if parts else EMPTY
        self.stale = False
        return True

    def save(self) -> None:
        """Writes the snapshot beside its place and renames it there, so a crash leaves a whole one."""
        now = self.now
        if self._path is None or not now.ids:
            return
        body = {
            "at_ms": now.at_ms,
            "ids": now.ids,
            "score": now.score.tolist(),
            "shown": now.shown.tolist(),
            "clicked": now.clicked,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".writing")
        beside.write_bytes(orjson.dumps(body))
        os.replace(beside, self._path)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="snapshot", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)
        if not self.stale:
            self.save()

    def _keep(self) -> None:
        ticks_to_save = max(1, round(self._save_every_s / self._every_s))
        tick = 0
        while not self._stop.is_set():
            try:
                if self.refresh() and tick % ticks_to_save == 0:
                    self.save()
            except Exception:
                self.stale = True
                _LOG.exception("the popularity snapshot could not be renewed")
            tick += 1
            self._stop.wait(self._every_s)


class LastUsers:
    """The last row that could be read of each recent user. Bounded, least recent out first."""

    def __init__(self, limit: int = 10_000) -> None:
        self._rows: OrderedDict[str, FeatureFrame] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def keep(self, frame: FeatureFrame) -> None:
        with self._lock:
            self._rows[frame.ids[0]] = frame
            self._rows.move_to_end(frame.ids[0])
            while len(self._rows) > self._limit:
                self._rows.popitem(last=False)

    def get(self, user_id: str) -> FeatureFrame | None:
        with self._lock:
            return self._rows.get(user_id)

    def forget(self, user_id: str) -> None:
        with self._lock:
            self._rows.pop(user_id, None)


def joined(parts: Sequence[FeatureFrame]) -> FeatureFrame:
    """The parts' rows below each other; all of one entity."""
    if len(parts) == 1:
        return parts[0]
    return FeatureFrame(
        entity=parts[0].entity,
        ids=tuple(vid for part in parts for vid in part.ids),
        status=np.concatenate([part.status for part in parts]),
        last_event_ms=np.concatenate([part.last_event_ms for part in parts]),
        columns={
            name: np.concatenate([part.columns[name] for part in parts])
            for name in parts[0].columns
        },
    )


def _load(path: Path) -> Popularity:
    try:
        body = orjson.loads(path.read_bytes())
        ids = tuple(body["ids"])
        return Popularity(
            at_ms=int(body["at_ms"]),
            ids=ids,
            row={video_id: row for row, video_id in enumerate(ids)},
            score=np.asarray(body["score"], np.float32),
            shown=np.asarray(body["shown"], np.int64),
            clicked=dict(body["clicked"]),
        )
    except FileNotFoundError:
        return EMPTY
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning(
            "the popularity snapshot at %s cannot be read, starting without: %s", path, error
        )
        return EMPTY
