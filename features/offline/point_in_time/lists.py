"""Last-n lists at labels without folding: ranges of the entity's events, newest first.

Knows event order, arrivals and labels. Does not know rows or stores. A list is a slice of the
entity's listed events. Labels with an event in flight or ahead are resolved event by event;
their lists are appended to the others, so that every list is a slice of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from features.definitions import EntityDefinition, LastN, is_kind
from features.kernels import labels as label_loops
from features.offline.point_in_time.order import EventHistory, LabelOrder
from features.rows.finalize import gc_disabled
from streams.contract.declaration import contract

EVENTS_AT_ONCE = 100_000  # a chunk that fits a core's cache


@dataclass(frozen=True)
class _Listed:
    """The events that one list can hold (K of M), and the labels' places among them."""

    event: np.ndarray  # int64 [K], places among all events
    listed_before: np.ndarray  # int64 [M + 1], how many of them precede each place
    order: LabelOrder
    n: int

    @property
    def high(self) -> np.ndarray:
        """int64 [L]: one past the newest listed event before the label."""
        return np.asarray(self.listed_before.take(self.order.label_place))

    @property
    def first(self) -> np.ndarray:
        return np.asarray(self.listed_before.take(self.order.row_start))


@dataclass(frozen=True)
class LabelLists:
    """One feature's lists: label l has `event[start[l]:stop[l]]`, newest first."""

    feature: LastN
    event: np.ndarray  # int64 [P], places among all events
    start: np.ndarray  # int64 [L]
    stop: np.ndarray  # int64 [L]

    def columns(self, order: LabelOrder, history: EventHistory) -> Iterator[tuple[str, pl.Series]]:
        """Each declared column's values at `event`."""
        yield self.feature.column, history.column(self.feature.source, self.event)
        if self.feature.kind_column is not None:
            yield (
                self.feature.kind_column,
                pl.Series(contract().signals.name).gather(history.kind[self.event]),
            )
        if self.feature.time_column is not None:
            yield self.feature.time_column, pl.Series(order.events.time[self.event])

    def slices(self) -> list[slice]:
        with gc_disabled():
            return list(map(slice, self.start.tolist(), self.stop.tolist()))

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All lists concatenated: offsets int64 [L + 1], places in `event` (uint32)."""
        offsets, places = label_loops.spread(self.start, self.stop)
        return offsets, places


def lists_at(
    definition: EntityDefinition, order: LabelOrder, history: EventHistory, back: np.ndarray
) -> list[LabelLists]:
    """Every last-n feature's lists, labels in the order `back` (int64 [L])."""
    found = []
    for feature in definition.lists:
        hit = is_kind(history.kind, feature.kinds)
        hit &= history.frame[feature.source].is_not_null().to_numpy()[history.place]
        event, start, stop = _slices(_listed(hit, order, feature.n))
        found.append(LabelLists(feature, event, start[back], stop[back]))
    return found


def python_lists(
    found: list[LabelLists], order: LabelOrder, history: EventHistory
) -> Iterator[tuple[str, np.ndarray]]:
    """Every column as object [L] of lists; equal values are one object."""
    for lists in found:
        slices = lists.slices()
        for name, values in lists.columns(order, history):
            whole = values.to_list()
            with gc_disabled():
                yield name, np.fromiter(map(whole.__getitem__, slices), object, len(slices))


def list_series(
    found: list[LabelLists], order: LabelOrder, history: EventHistory
) -> Iterator[pl.Series]:
    """Every column as a polars series of lists."""
    for lists in found:
        offsets, flat = lists.flat()
        for name, values in lists.columns(order, history):
            inner = values.gather(flat).to_arrow(compat_level=pl.CompatLevel.newest())
            yield pl.Series(name, pa.LargeListArray.from_arrays(pa.array(offsets), inner))


def _listed(hit: np.ndarray, order: LabelOrder, n: int) -> _Listed:
    before = np.zeros(len(hit) + 1, np.int64)
    np.cumsum(hit, out=before[1:])
    return _Listed(np.flatnonzero(hit), before, order, n)


def _slices(listed: _Listed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(events, start, stop): plain lists in the reversed history, corrected ones after it."""
    high, size = listed.high, len(listed.event)
    low = np.maximum(high - listed.n, listed.first)
    start, stop = size - high, size - low
    events, end = [listed.event[::-1]], size
    for labels, event, counts in _corrected(listed):
        stop[labels] = end + np.cumsum(counts)
        start[labels] = stop[labels] - counts
        events.append(event)
        end += len(event)
    return np.concatenate(events), start, stop


def _corrected(listed: _Listed) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(labels, their events newest first, events per label) of the labels to correct."""
    labels, low, high = _labels_to_correct(listed)
    events, arrival = listed.order.events, listed.order.arrival
    chunk = np.cumsum(high - low) // EVENTS_AT_ONCE
    for part in np.split(np.arange(len(labels)), np.flatnonzero(chunk[1:] != chunk[:-1]) + 1):
        if len(part) == 0:
            continue
        length = high[part] - low[part]
        label = np.repeat(np.arange(len(part)), length)
        begin = np.cumsum(length) - length
        place = high[part][label] - 1 - (np.arange(len(label)) - begin[label])
        event = listed.event[place]
        now = listed.order.labels.time[labels[part]][label]
        seen = arrival[event] < now
        before = np.concatenate([[0], np.cumsum(seen)])
        rank = before[1:] - before[begin][label]
        # An event ahead of the reader's clock takes a place in the row but is not returned.
        keep = seen & (rank <= listed.n) & (events.time[event] <= now)
        yield labels[part], event[keep], np.bincount(label[keep], minlength=len(part))


def _labels_to_correct(listed: _Listed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with a listed event in flight or ahead, and the range that can hold their lists."""
    order, n = listed.order, len(listed.order.labels.row)
    hit = np.diff(listed.listed_before).astype(bool)
    missing = order.in_flight.where(hit).count(n)
    early = order.ahead.where(hit).count(n) > 0
    labels = np.flatnonzero((missing > 0) | early)
    high = listed.high[labels]
    low = np.maximum(high - listed.n - missing[labels], listed.first[labels])
    return labels, low, np.where(early[labels], _last_ahead(listed, labels), high)


def _last_ahead(listed: _Listed, labels: np.ndarray) -> np.ndarray:
    """One past the newest listed event that can have arrived before each label."""
    order = listed.order
    if not len(order.ahead.event):
        return np.asarray(listed.high[labels])
    event = order.ahead.event
    slack_ms = int((order.events.time[event] - order.arrival[event]).max())
    row, time = order.labels.row[labels], order.labels.time[labels]
    until = order.events.first_from(row, time + slack_ms)
    return np.asarray(listed.listed_before.take(until))
