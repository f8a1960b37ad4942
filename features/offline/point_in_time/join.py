"""The point-in-time join: features of entities at past moments, as the online reader saw them.

Knows events and labels. Does not know stores. Tests hold its values equal to folding and
finalizing stored rows.

An event counts at a label if it had *arrived* before the label's time (strictly: a label sees
nothing of its own millisecond), in the windows that its *event time* falls into. A late event
is therefore missing at the labels between its time and its arrival, exactly as it was online.

No row is folded. Events and labels are sorted once (`order`), a count is the difference of a
running sum at two places (`counts`), and a last-n list is a range of the entity's events
(`lists`). `replay` folds again where only that is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from features.declarations import ColumnType
from features.definitions import DEFINITIONS, EntityDefinition, is_kind
from features.kernels import labels as label_loops
from features.offline.point_in_time.counts import counts_at
from features.offline.point_in_time.lists import LabelLists, list_series, lists_at, python_lists
from features.offline.point_in_time.order import EventHistory, LabelOrder, SortedMoments, order_by
from features.offline.point_in_time.replay import replay_features, with_kind_codes
from features.rows.aggregate import READER_SLACK_MS, event_hashes
from features.rows.derived import derived_columns, source_lists
from features.store import EntityName, FeatureFrame, Status, plain_values
from streams.contract.schema import event_schema


def join_features(events: pl.DataFrame, labels: pl.DataFrame, entity: EntityName) -> pl.DataFrame:
    """The labels with `status`, `last_event_ms` and every declared column appended.

    One row per label, in their order: counts and sums int64, ratios and decayed counts float64
    (a ratio may be null), last-n columns lists. `events` and `labels` as in `features_as_of`; the
    labels' other columns stay.
    """
    definition = DEFINITIONS[entity]
    found = _join(definition, events, labels)
    if isinstance(found, FeatureFrame):
        return labels.hstack(_series(definition, found))
    columns = {name: pl.Series(name, values) for name, values in found.counts.items()}
    columns |= {s.name: s for s in list_series(found.lists, found.order, found.history)}
    columns |= {
        name: _series_of(name, values, definition.column_types[name])
        for name, values in _derived(definition, found, labels)
    }
    beside = [pl.Series("status", found.status), pl.Series("last_event_ms", found.last)]
    return labels.hstack([*beside, *(columns[name] for name in definition.columns)])


def features_as_of(events: pl.DataFrame, labels: pl.DataFrame, entity: EntityName) -> FeatureFrame:
    """The same as the online reader's frame: last-n columns as Python lists, newest first.

    Args:
        events: `EVENT_SCHEMA`'s columns (absent ones are null); `kind` as a code or as a
            string. Rows marked duplicate are not counted.
        labels: the entity's id column (`user_id`, `video_id`, `author_id` or `query`) and
            `time_ms`, int64.
    """
    definition = DEFINITIONS[entity]
    found = _join(definition, events, labels)
    if isinstance(found, FeatureFrame):
        return found
    columns = found.counts | dict(python_lists(found.lists, found.order, found.history))
    columns |= dict(derived_columns(definition, columns, _times(labels)))
    ordered = {name: columns[name] for name in definition.columns}
    ids = tuple(labels[definition.id_column].to_list())
    return FeatureFrame(entity, ids, found.status, found.last, ordered)


_POLARS_TYPES: Mapping[ColumnType, Any] = {
    "integer": pl.Int64,
    "number": pl.Float64,
    "texts": pl.List(pl.String),
    "integers": pl.List(pl.Int64),
}


@dataclass(frozen=True)
class _JoinResult:
    """The stored features in the labels' order."""

    order: LabelOrder
    history: EventHistory
    status: np.ndarray  # uint8 [L]
    last: np.ndarray  # int64 [L], event time of the newest event, ms
    counts: dict[str, np.ndarray]  # `counted_columns`
    lists: list[LabelLists]


def _join(
    definition: EntityDefinition, events: pl.DataFrame, labels: pl.DataFrame
) -> _JoinResult | FeatureFrame:
    """The features from sorted order, or as a frame by folding again where only that is exact."""
    ids = labels[definition.id_column]
    times = _times(labels)
    known = _text(ids).dictionary_encode()
    frame = _events(definition, events)
    place, row = _labelled(definition, frame, known.dictionary)
    if _comes_twice(frame, place):
        return replay_features(definition, events, ids.to_list(), times)
    history, moments = _history(frame, place, row)
    arrival = frame["ingested_at_ms"].to_numpy()[history.place]
    if int((moments.time - arrival).max(initial=0)) > READER_SLACK_MS:
        return replay_features(definition, events, ids.to_list(), times)
    asked, back = _asked(known, times)
    order = LabelOrder(moments, arrival, asked)
    last = order.newest()[back]
    return _JoinResult(
        order,
        history,
        _status(definition, last, times),
        last,
        dict(counts_at(definition, order, history, back)),
        lists_at(definition, order, history, back),
    )


def _series(definition: EntityDefinition, frame: FeatureFrame) -> list[pl.Series]:
    columns = [pl.Series("status", frame.status), pl.Series("last_event_ms", frame.last_event_ms)]
    types = definition.column_types
    return columns + [_series_of(name, frame.columns[name], types[name]) for name in types]


def _series_of(name: str, values: np.ndarray, column_type: ColumnType) -> pl.Series:
    return pl.Series(name, plain_values(values), _POLARS_TYPES[column_type])


def _derived(
    definition: EntityDefinition, found: _JoinResult, labels: pl.DataFrame
) -> Iterator[tuple[str, np.ndarray]]:
    """The derived columns. Only the lists that they are computed from become Python lists."""
    sources = source_lists(definition)
    lists = [each for each in found.lists if each.feature in sources]
    columns = found.counts | dict(python_lists(lists, found.order, found.history))
    return derived_columns(definition, columns, _times(labels))


def _times(labels: pl.DataFrame) -> np.ndarray:
    """int64 [L], ms."""
    return labels["time_ms"].to_numpy().astype(np.int64)


def _status(definition: EntityDefinition, last: np.ndarray, now: np.ndarray) -> np.ndarray:
    status = np.where(last == 0, Status.ABSENT, Status.PRESENT).astype(np.uint8)
    status[(last > 0) & (now - last > definition.ttl_ms)] = Status.EXPIRED
    return status


def _events(definition: EntityDefinition, events: pl.DataFrame) -> pl.DataFrame:
    """The columns that the join reads, absent ones null, kinds as codes."""
    wanted = {*_JOIN_COLUMNS, *definition.event_columns}
    have = events.select(*sorted(wanted & set(events.columns)), _kept(events)).rechunk()
    absent = [pl.lit(None, _dtype(name)).alias(name) for name in sorted(wanted - set(have.columns))]
    return with_kind_codes(have).with_columns(*absent)


_JOIN_COLUMNS = ("user_id", "event_id", "kind", "event_time_ms", "ingested_at_ms")


def _kept(events: pl.DataFrame) -> pl.Expr:
    marked = pl.col("duplicate") if "duplicate" in events.columns else pl.lit(False)
    return (~marked & (pl.col("event_time_ms") > 0)).alias("kept")


def _dtype(name: str) -> pl.DataType:
    empty = pa.table({name: pa.array([], event_schema().field(name).type)})
    return pl.DataFrame(empty).schema[name]


def _labelled(
    definition: EntityDefinition, events: pl.DataFrame, known: pa.Array
) -> tuple[np.ndarray, np.ndarray]:
    """The labelled entities' events: their places in `events`, and their ids' places in `known`."""
    found = pc.index_in(_text(events[definition.id_column]), known, skip_nulls=True)
    row = found.fill_null(-1).to_numpy(zero_copy_only=False)
    kept = (row >= 0) & events["kept"].to_numpy()
    if definition.kinds is not None:
        kept &= is_kind(events["kind"].to_numpy(), definition.kinds)
    place = np.flatnonzero(kept)
    return place, row[place].astype(np.int64)


def _text(ids: pl.Series) -> pa.Array:
    return ids.cast(pl.String).rechunk().to_arrow()


def _comes_twice(events: pl.DataFrame, place: np.ndarray) -> bool:
    """Whether an event is repeated without being marked duplicate."""
    # A collision of these 64 bits costs time but never gives a wrong value.
    by_event = pl.col("event_id").hash(2)
    return not (
        _distinct(events, by_event, place)
        or _distinct(events, pl.col("user_id").hash(1) ^ by_event, place)
    )


def _distinct(events: pl.DataFrame, key: pl.Expr, place: np.ndarray) -> bool:
    return not label_loops.repeats(events.select(key).to_series().to_numpy()[place])


def _history(
    events: pl.DataFrame, place: np.ndarray, row: np.ndarray
) -> tuple[EventHistory, SortedMoments]:
    """The events at these places, sorted by entity, event time and hash, oldest first."""
    time = events["event_time_ms"].to_numpy()[place]
    order = order_by(row, time)
    row, time, place = row[order], time[order], place[order]
    tied = np.zeros(len(row), bool)
    tied[1:] = (row[1:] == row[:-1]) & (time[1:] == time[:-1])
    tied[:-1] |= tied[1:]
    at = np.flatnonzero(tied)
    if len(at):
        hashes = event_hashes(events[["user_id", "event_id"]][place[at]].to_arrow())
        place[at] = place[at][np.lexsort((hashes, time[at], row[at]))]
    return EventHistory(events["kind"].to_numpy()[place], place, events), SortedMoments(row, time)


def _asked(known: pa.DictionaryArray, times: np.ndarray) -> tuple[SortedMoments, np.ndarray]:
    """The labels sorted by entity and time, and int64 [L]: each label's place among them."""
    no_entity = len(known.dictionary)
    row = known.indices.fill_null(no_entity).to_numpy(zero_copy_only=False).astype(np.int64)
    order = order_by(row, times)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return SortedMoments(row[order], times[order]), back
