"""Last-n lists at labels without folding: ranges of the entity's events, newest first.

Knows event order, arrivals and labels. Does not know rows or stores. A list is a slice of
the entity's listed events. Only labels with an event under way, or with events ahead of
their clock, are sorted out event by event; their lists are laid behind the others, so that
every list is a slice of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from features.definitions import EntityDefinition, LastN, of_kinds
from features.kernels import labels as label_loops
from features.offline.point_in_time.order import History, Order
from features.rows.finalize import uncollected
from streams.contract.events import KINDS

EVENTS_AT_ONCE = 100_000  # looked at together: what a core's cache holds


@dataclass(frozen=True)
class _Listed:
    """The events that one list may hold (K of M), and the labels' places among them."""

    event: np.ndarray  # int64 [K], places among all events
    before: np.ndarray  # [M + 1], how many of them lie before each place
    order: Order
    n: int

    @property
    def high(self) -> np.ndarray:
        """[L]: one past the newest listed event before the label."""
        return np.asarray(self.before.take(self.order.now))

    @property
    def first(self) -> np.ndarray:
        return np.asarray(self.before.take(self.order.first))


@dataclass(frozen=True)
class Lists:
    """One feature's lists: per label `event[start:stop]`, newest first."""

    feature: LastN
    event: np.ndarray  # int64 [P], places among all events
    start: np.ndarray  # int64 [L]
    stop: np.ndarray  # int64 [L]

    def columns(self, order: Order, history: History) -> Iterator[tuple[str, pl.Series]]:
        """Each declared column's values at `event`."""
        yield self.feature.column, history.column(self.feature.source, self.event)
        if self.feature.kind_column is not None:
            yield self.feature.kind_column, pl.Series(KINDS).gather(history.kind[self.event])
        if self.feature.time_column is not None:
            yield self.feature.time_column, pl.Series(order.events.time[self.event])

    def slices(self) -> list[slice]:
        with uncollected():
            return list(map(slice, self.start.tolist(), self.stop.tolist()))

    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All lists one after another: offsets int64 [L + 1], places in `event` (uint32)."""
        offsets, places = label_loops.spread(self.start, self.stop)
        return offsets, places


def lists_at(
    definition: EntityDefinition, order: Order, history: History, back: np.ndarray
) -> list[Lists]:
    """Every last-n feature's lists, labels in the order of `back` (int64 [L], places)."""
    found = []
    for feature in definition.lists:
        hit = of_kinds(history.kind, feature.kinds)
        hit &= history.frame[feature.source].is_not_null().to_numpy()[history.place]
        event, start, stop = _slices(_listed(hit, order, feature.n))
        found.append(Lists(feature, event, start[back], stop[back]))
    return found


def python_lists(
    found: list[Lists], order: Order, history: History
) -> Iterator[tuple[str, np.ndarray]]:
    """Every column as object [L] of lists; equal values are one object."""
    for lists in found:
        slices = lists.slices()
        for name, values in lists.columns(order, history):
            whole = values.to_list()
            with uncollected():
                yield name, np.fromiter(map(whole.__getitem__, slices), object, len(slices))


def list_series(found: list[Lists], order: Order, history: History) -> Iterator[pl.Series]:
    """Every column as a polars series of lists."""
    for lists in found:
        offsets, flat = lists.flat()
        for name, values in lists.columns(order, history):
            inner = values.gather(flat).to_arrow(compat_level=pl.CompatLevel.newest())
            yield pl.Series(name, pa.LargeListArray.from_arrays(pa.array(offsets), inner))


def _listed(hit: np.ndarray, order: Order, n: int) -> _Listed:
    before = np.zeros(len(hit) + 1, np.int64)
    np.cumsum(hit, out=before[1:])
    return _Listed(np.flatnonzero(hit), before, order, n)


def _slices(listed: _Listed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(events, start, stop): usual lists in the reversed history, unusual ones behind it."""
    high, size = listed.high, len(listed.event)
    low = np.maximum(high - listed.n, listed.first)
    start, stop = size - high, size - low
    events, laid = [listed.event[::-1]], size
    for labels, event, counts in _picked(listed):
        stop[labels] = laid + np.cumsum(counts)
        start[labels] = stop[labels] - counts
        events.append(event)
        laid += len(event)
    return np.concatenate(events), start, stop


def _picked(listed: _Listed) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(labels, their events newest first, events per label) of the unusual labels."""
    labels, low, high = _unusual(listed)
    events, arrival = listed.order.events, listed.order.arrival
    chunk = np.cumsum(high - low) // EVENTS_AT_ONCE
    for part in np.split(np.arange(len(labels)), np.flatnonzero(chunk[1:] != chunk[:-1]) + 1):
        if len(part) == 0:
            continue
        length = high[part] - low[part]
        owner = np.repeat(np.arange(len(part)), length)
        begin = np.cumsum(length) - length
        place = high[part][owner] - 1 - (np.arange(len(owner)) - begin[owner])
        event = listed.event[place]
        now = listed.order.labels.time[labels[part]][owner]
        seen = arrival[event] < now
        before = np.concatenate([[0], np.cumsum(seen)])
        rank = before[1:] - before[begin][owner]
        # What lies ahead of the reader's clock has its place in the row but is not shown.
        keep = seen & (rank <= listed.n) & (events.time[event] <= now)
        yield labels[part], event[keep], np.bincount(owner[keep], minlength=len(part))


def _unusual(listed: _Listed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels that miss a listed event, or hold one ahead; and where their lists can lie."""
    order, n = listed.order, len(listed.order.labels.row)
    hit = np.diff(listed.before).astype(bool)
    missing = order.under_way.of(hit).count(n)
    early = order.ahead.of(hit).count(n) > 0
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
    return np.asarray(listed.before.take(until))
