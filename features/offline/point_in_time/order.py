"""Events and labels sorted by (entity, time): where each label falls among its entity's events.

Knows order, arrivals and places. Does not know windows (`counts`) or lists (`lists`). What
happened before a label is a prefix of its entity's events, so counts and lists follow from
places. Two small sets correct for arrivals: events in flight (happened before some label,
arrived after it) and events ahead (arrived before some label, dated after it). Each such event
concerns a run of its entity's labels.

A row is an entity's number, from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from features.kernels import labels as label_loops

_ALL = slice(None)
_MIN_TIME = np.iinfo(np.int64).min


def order_by(row: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int64 [M]: places sorted by row and time, stable; fast where time is nearly sorted."""
    return np.asarray(label_loops.sorted_by_row(row, np.argsort(time, kind="stable")))


@dataclass(frozen=True)
class SortedMoments:
    """M moments sorted by (row, time)."""

    row: np.ndarray  # int64 [M]
    time: np.ndarray  # int64 [M], ms

    def first_from(self, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """int64 [Q]: place of each row's first moment at or after `time`; the row's end if none."""
        return np.asarray(label_loops.first_from(self.row, self.time, row, time))

    def first_of(self, row: np.ndarray) -> np.ndarray:
        """int64 [Q]: place of each row's first moment; of the next row's if it has none."""
        return self.first_from(row, np.full(len(row), _MIN_TIME))


@dataclass(frozen=True)
class LabelRuns:
    """R events, each with the run [start, stop) of labels that it concerns."""

    event: np.ndarray  # int64 [R], places among the events
    start: np.ndarray  # int64 [R]
    stop: np.ndarray  # int64 [R]

    @classmethod
    def non_empty(cls, event: np.ndarray, start: np.ndarray, stop: np.ndarray) -> LabelRuns:
        """The runs that are not empty."""
        held = start < stop
        return cls(event[held], start[held], stop[held])

    def where(self, counted: np.ndarray) -> LabelRuns:
        """The runs of the events under a mask (bool over all events)."""
        held = counted[self.event]
        return LabelRuns(self.event[held], self.start[held], self.stop[held])

    def count(self, n: int) -> np.ndarray:
        """int64 [n]: how many of the runs hold each label."""
        rise = np.bincount(self.start, minlength=n + 1)
        return np.cumsum(rise - np.bincount(self.stop, minlength=n + 1))[:n]


@dataclass(frozen=True)
class LabelOrder:
    """M events sorted by row, time and id hash, and L labels sorted by row and time."""

    events: SortedMoments
    arrival: np.ndarray  # int64 [M], ms
    labels: SortedMoments

    @cached_property
    def label_place(self) -> np.ndarray:
        """int64 [L]: place of the first event of the label's row that is not before the label."""
        return self.events.first_from(self.labels.row, self.labels.time)

    @cached_property
    def row_start(self) -> np.ndarray:
        """int64 [L]: place of the row's first event."""
        return self.events.first_of(self.labels.row)

    @cached_property
    def _after(self) -> np.ndarray:
        """int64 [M]: first label after each event; may be of a later row."""
        return np.cumsum(np.bincount(self.label_place, minlength=len(self.arrival) + 1)[:-1])

    @cached_property
    def in_flight(self) -> LabelRuns:
        """Labels after the event's time but not after its arrival."""
        labels, events = self.labels, self.events
        if not len(labels.row):
            return _NO_RUNS
        after = np.minimum(self._after, len(labels.row) - 1)
        missed = (labels.row[after] == events.row) & (labels.time[after] <= self.arrival)
        late = np.flatnonzero(missed & (self._after < len(labels.row)))
        stop = labels.first_from(events.row[late], self.arrival[late] + 1)
        return LabelRuns.non_empty(late, self._after[late], stop)

    @cached_property
    def ahead(self) -> LabelRuns:
        """Labels after the event's arrival but not after its time."""
        early = np.flatnonzero(self.arrival < self.events.time)
        start = self.labels.first_from(self.events.row[early], self.arrival[early] + 1)
        return LabelRuns.non_empty(early, start, self._after[early])

    def newest(self) -> np.ndarray:
        """int64 [L]: event time of the newest event that had arrived; 0 where none had."""
        n = len(self.labels.row)
        on_time = np.arange(len(self.arrival))
        on_time[self.in_flight.event] = on_time[self.ahead.event] = -1
        before = np.concatenate([[-1], np.maximum.accumulate(on_time)])[self.label_place]
        newest = np.zeros(n, np.int64)
        known = before >= self.row_start
        newest[known] = self.events.time[before[known]]
        return np.asarray(np.maximum(newest, self._newest_off_time(n)))

    def _newest_off_time(self, n: int) -> np.ndarray:
        event = np.concatenate([self.in_flight.event, self.ahead.event])
        seen = np.concatenate([self.in_flight.stop, self.ahead.start])
        row, time = self.events.row[event], self.events.time[event]
        own = seen < self.labels.first_of(row + 1)
        newest = np.zeros(n, np.int64)
        np.maximum.at(newest, seen[own], time[own])
        return np.asarray(label_loops.largest_so_far(self.labels.row, newest))


@dataclass(frozen=True)
class EventHistory:
    """The columns of the M events, in their order."""

    kind: np.ndarray  # uint8 [M]
    place: np.ndarray  # int64 [M], of each event in `frame`
    frame: pl.DataFrame

    def column(self, name: str, at: np.ndarray | slice = _ALL) -> pl.Series:
        """One column at the events `at`; at all of them by default."""
        return self.frame[name].gather(self.place[at])


_NO_PLACES = np.zeros(0, np.int64)
_NO_RUNS = LabelRuns(_NO_PLACES, _NO_PLACES, _NO_PLACES)
