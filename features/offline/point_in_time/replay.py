"""The point-in-time join by folding again: exact for any history, but slow.

Knows rounds of the fold: round j folds what arrived between each entity's labels j-1 and j.
Does not know sorted order. `join` falls back to it when an event is repeated unmarked or dated
far ahead of its arrival: then only a row's own recent ids and tiles say what it held.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from features.definitions import EntityDefinition
from features.rows.aggregate import EventBatch, fold_events, group_by_entity
from features.rows.byte_slices import ByteSlices
from features.rows.finalize import finalize_rows
from features.store import FeatureFrame
from streams.bus.contract import Stamp
from streams.contract.declaration import contract
from streams.contract.schema import conform, event_schema

LABELS_AT_ONCE = 16_384  # finalized together: bounds memory to their rows
_TIME_BITS = 43  # milliseconds until the year 2248


def replay_features(
    definition: EntityDefinition, events: pl.DataFrame, ids: list[str], times: np.ndarray
) -> FeatureFrame:
    """Features of `ids` at `times` (int64 [L], ms), one row per label, in their order."""
    batch = group_by_entity(definition, to_event_table(events))
    place = {entity_id: row for row, entity_id in enumerate(batch.ids)}
    rows = np.array([place.get(entity_id, -1) for entity_id in ids], np.int64)
    frames, order = [], []
    for labelled, blobs in _replay(definition, batch, rows, times):
        part = [ids[i] for i in labelled]
        frames.append(finalize_rows(definition, part, blobs, times[labelled]))
        order.append(labelled)
    return _in_order(definition, ids, frames, order)


def to_event_table(events: pl.DataFrame) -> pa.Table:
    """Events as a fold takes them (`EVENT_SCHEMA`); `kind` may be a code or a string."""
    events = with_kind_codes(events)
    if "duplicate" not in events.columns:
        events = events.with_columns(duplicate=pl.lit(False))
    return conform(events.to_arrow(), event_schema())


def with_kind_codes(events: pl.DataFrame) -> pl.DataFrame:
    """The events with `kind` as a wire code (uint8), whether it was a code or a string."""
    if events.schema["kind"] not in (pl.String, pl.Categorical, pl.Enum):
        return events
    kind = pl.col("kind").cast(pl.String)
    return events.with_columns(
        kind.replace_strict(contract().signals.number, return_dtype=pl.UInt8)
    )


def _replay(
    definition: EntityDefinition, batch: EventBatch, rows: np.ndarray, times: np.ndarray
) -> Iterator[tuple[np.ndarray, list[bytes | None]]]:
    """Labels (as places) with the rows that were stored when their reader came.

    Round j folds what arrived between each entity's labels j-1 and j, for all entities at once,
    then takes the rows.
    """
    known = np.flatnonzero(rows >= 0)
    known = known[np.lexsort((times[known], rows[known]))]
    label_round = _rank(rows[known])
    starts, stops, by_round = _rounds(batch, rows[known], times[known])
    stored: list[bytes | None] = [None] * len(batch.names)
    pending = [np.flatnonzero(rows < 0)]
    blobs: list[bytes | None] = [None] * int((rows < 0).sum())
    in_round = known[np.argsort(label_round, kind="stable")]
    ends = np.cumsum(np.bincount(label_round)) if len(known) else np.zeros(0, np.int64)
    for number, end in enumerate(ends.tolist()):
        if number < len(starts):
            events = by_round[starts[number] : stops[number]]
            _fold_round(definition, batch, events, stored, number)
        labelled = in_round[ends[number - 1] if number else 0 : end]
        pending.append(labelled)
        blobs.extend(stored[row] for row in rows[labelled].tolist())
        if len(blobs) >= LABELS_AT_ONCE:
            yield np.concatenate(pending), blobs
            pending, blobs = [], []
    if blobs:
        yield np.concatenate(pending), blobs


def _rounds(
    batch: EventBatch, label_row: np.ndarray, label_time: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events by the round that folds them: per round (starts, stops) of the third array.

    An event's round is the number of its entity's labels at or before its arrival; events after
    the last label have no round.
    """
    arrival = batch.table.column("ingested_at_ms").to_numpy()
    label_key = (label_row << _TIME_BITS) + label_time
    first = np.searchsorted(label_row, batch.row, side="left")
    last = np.searchsorted(label_row, batch.row, side="right")
    at = np.searchsorted(label_key, (batch.row << _TIME_BITS) + arrival, side="right")
    event_round = at - first
    by_round = np.argsort(event_round, kind="stable")
    by_round = by_round[(at < last)[by_round]]
    count = np.bincount(event_round[by_round]) if len(by_round) else np.zeros(0, np.int64)
    stops = np.cumsum(count)
    return stops - count, stops, by_round


def _fold_round(
    definition: EntityDefinition,
    batch: EventBatch,
    picked: np.ndarray,
    stored: list[bytes | None],
    number: int,
) -> None:
    """Folds the picked events into `stored`, in place."""
    if len(picked) == 0:
        return
    rows, row = np.unique(batch.row[picked], return_inverse=True)
    part = EventBatch(
        names=batch.names.take(pa.array(rows)),
        row=row.astype(np.int64),
        time=batch.time[picked],
        kind=batch.kind[picked],
        hash=batch.hash[picked],
        table=batch.table.take(pa.array(picked)),
    )
    current = ByteSlices.from_list([stored[r] for r in rows])
    folded = fold_events(definition, current, part, Stamp("point-in-time", 0, number))
    for changed, blob in zip(folded.changed.tolist(), folded.rows.to_list(), strict=True):
        stored[rows[changed]] = blob


def _rank(sorted_group: np.ndarray) -> np.ndarray:
    """Each element's place within its run of equal values."""
    at = np.arange(len(sorted_group))
    return np.asarray(at - np.searchsorted(sorted_group, sorted_group, side="left"))


def _in_order(
    definition: EntityDefinition,
    ids: list[str],
    frames: list[FeatureFrame],
    order: list[np.ndarray],
) -> FeatureFrame:
    """The parts as one frame in the labels' order; no label is lost."""
    if not frames:
        return finalize_rows(definition, [], [], 0)
    back = np.argsort(np.concatenate(order))
    assert len(back) == len(ids)
    columns = {
        name: np.concatenate([frame.columns[name] for frame in frames])[back]
        for name in definition.columns
    }
    status = np.concatenate([frame.status for frame in frames])[back]
    last = np.concatenate([frame.last_event_ms for frame in frames])[back]
    return FeatureFrame(definition.name, tuple(ids), status, last, columns)
