"""Row operations on feature frames: take, concatenate, absent rows, one row's list column.

Knows `FeatureFrame`. Does not know the store, stages or requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.definitions import DEFINITIONS
from features.rows.finalize import finalize_rows
from features.store import EntityName, FeatureFrame


def absent_rows(entity: EntityName, ids: Sequence[str]) -> FeatureFrame:
    """The rows that the store returns for entities without events."""
    return finalize_rows(DEFINITIONS[entity], ids, [None] * len(ids), 0)


def take_rows(frame: FeatureFrame, rows: Sequence[int]) -> FeatureFrame:
    """The frame's rows at these positions, in this order."""
    index = np.asarray(rows, dtype=np.int64)
    return FeatureFrame(
        entity=frame.entity,
        ids=tuple(frame.ids[row] for row in rows),
        status=frame.status[index],
        last_event_ms=frame.last_event_ms[index],
        columns={name: values[index] for name, values in frame.columns.items()},
    )


def concat_frames(frames: Sequence[FeatureFrame]) -> FeatureFrame:
    """The rows of all frames, in order. The frames must be of one entity."""
    if len(frames) == 1:
        return frames[0]
    return FeatureFrame(
        entity=frames[0].entity,
        ids=tuple(row_id for frame in frames for row_id in frame.ids),
        status=np.concatenate([frame.status for frame in frames]),
        last_event_ms=np.concatenate([frame.last_event_ms for frame in frames]),
        columns={
            name: np.concatenate([frame.columns[name] for frame in frames])
            for name in frames[0].columns
        },
    )


def list_column(frame: FeatureFrame | None, column: str, row: int = 0) -> list[str]:
    """One row's last-n column as a list; [] where the frame, column or row is missing."""
    if frame is None or column not in frame.columns or row >= len(frame):
        return []
    return list(frame.columns[column][row] or [])
