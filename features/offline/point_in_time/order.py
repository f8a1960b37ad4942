"""Events and labels by (entity, time): where each label falls among its entity's events.

Knows order, arrivals and places. Does not know windows (`features.offline.point_in_time.counts`) or lists
(`features.offline.point_in_time.lists`). What happened before a label is a prefix of its entity's events,
so counts and lists are read off places. Two small sets make up for arrivals: events under
way (happened before some label, arrived after it) and events ahead (arrived before some
label whose time they are dated after). Each is a run of its entity's labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from features.kernels import labels as label_loops

_ALL = slice(None)
_EVER = np.iinfo(np.int64).min


def order_by(row: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int64 [M]: places by row, then time, then as they came. Fast where time is nearly sorted."""
    return np.asarray(label_loops.sorted_by_row(row, np.argsort(time, kind="stable")))


@dataclass(frozen=True)
class Keys:
    """M moments sorted by (row, time)."""

    row: np.ndarray  # int64 [M]
    time: np.ndarray  # int64 [M], ms

    def first_from(self, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Place of each row's first moment at or after `time` (the row's end, where none is)."""
        return np.asarray(label_loops.first_from(self.row, self.time, row, time))

    def first_of(self, row: np.ndarray) -> np.ndarray:
        """Place of each row's first moment (of the next row's, where it has none)."""
        return self.first_from(row, np.full(len(row), _EVER))


@dataclass(frozen=True)
class Runs:
    """R events, each with the run [start, stop) of its entity's labels that it concerns."""

    event: np.ndarray  # int64 [R], places among the events
    start: np.ndarray  # int64 [R]
    stop: np.ndarray  # int64 [R]

    @classmethod
    def some(cls, event: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Runs:
        """Those that are not empty."""
        held = start < stop
        return cls(event[held], start[held], stop[held])

    def of(self, counted: np.ndarray) -> Runs:
        """The runs of events under a mask over all events."""
        held = counted[self.event]
        return Runs(self.event[held], self.start[held], self.stop[held])

    def count(self, n: int) -> np.ndarray:
        """int64 [n]: how many of the runs hold each label."""
        rise = np.bincount(self.start, minlength=n + 1)
        return np.cumsum(rise - np.bincount(self.stop, minlength=n + 1))[:n]


@dataclass(frozen=True)
class Order:
    """M events by row, time and id's hash, and L labels by row and time."""

    events: Keys
    arrival: np.ndarray  # int64 [M], ms
    labels: Keys

    @cached_property
    def now(self) -> np.ndarray:
        """int64 [L]: place of the first event of the label's row that is not before it."""
        return self.events.first_from(self.labels.row, self.labels.time)

    @cached_property
    def first(self) -> np.ndarray:
        """int64 [L]: place of the row's first event."""
        return self.events.first_of(self.labels.row)

    @cached_property
    def _after(self) -> np.ndarray:
        """int64 [M]: first label after each event (perhaps of a later row)."""
        return np.cumsum(np.bincount(self.now, minlength=len(self.arrival) + 1)[:-1])

    @cached_property
    def under_way(self) -> Runs:
        """Labels after the event's time but not after its arrival."""
        labels, events = self.labels, self.events
        if not len(labels.row):
            return _NO_RUNS
        after = np.minimum(self._after, len(labels.row) - 1)
        missed = (labels.row[after] == events.row) & (labels.time[after] <= self.arrival)
        late = np.flatnonzero(missed & (self._after < len(labels.row)))
        stop = labels.first_from(events.row[late], self.arrival[late] + 1)
        return Runs.some(late, self._after[late], stop)

    @cached_property
    def ahead(self) -> Runs:
        """Labels after the event's arrival but not after its time."""
        early = np.flatnonzero(self.arrival < self.events.time)
        start = self.labels.first_from(self.events.row[early], self.arrival[early] + 1)
        return Runs.some(early, start, self._after[early])

    def newest(self) -> np.ndarray:
        """int64 [L]: event time of the newest event that had arrived; 0 where none had."""
        n = len(self.labels.row)
        usual = np.arange(len(self.arrival))
        usual[self.under_way.event] = usual[self.ahead.event] = -1
        before = np.concatenate([[-1], np.maximum.accumulate(usual)])[self.now]
        newest = np.zeros(n, np.int64)
        known = before >= self.first
        newest[known] = self.events.time[before[known]]
        return np.asarray(np.maximum(newest, self._newest_unusual(n)))

    def _newest_unusual(self, n: int) -> np.ndarray:
        event = np.concatenate([self.under_way.event, self.ahead.event])
        seen = np.concatenate([self.under_way.stop, self.ahead.start])
        row, time = self.events.row[event], self.events.time[event]
        own = seen < self.labels.first_of(row + 1)
        newest = np.zeros(n, np.int64)
        np.maximum.at(newest, seen[own], time[own])
        return np.asarray(label_loops.largest_so_far(self.labels.row, newest))


@dataclass(frozen=True)
class History:
    """What the M events carry, in their order."""

    kind: np.ndarray  # uint8 [M]
    place: np.ndarray  # int64 [M], of each event in `frame`
    frame: pl.DataFrame

    def column(self, name: str, at: np.ndarray | slice = _ALL) -> pl.Series:
        """One column at some of the events (all, unless told)."""
        return self.frame[name].gather(self.place[at])


_NO_PLACES = np.zeros(0, np.int64)
_NO_RUNS = Runs(_NO_PLACES, _NO_PLACES, _NO_PLACES)
