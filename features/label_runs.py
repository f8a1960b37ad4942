"""Counts at labels without folding: each event counts in one run of its entity's labels.

Knows windows, tiles and sorted labels. Does not know rows or stores. As labels of one
entity move forward in time, an event enters a window once (when it has arrived and its
tile has begun) and leaves it once (when its tile falls behind), so it adds its value to
one run of labels: two searches and a running sum give every window's value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from features.definitions import Counter, EntityDefinition, Sum, Window, of_kinds


@dataclass(frozen=True)
class History:
    """M events by entity, event time and hash, oldest first; `row` is the entity's place."""

    row: np.ndarray  # int64 [M]
    time: np.ndarray  # int64 [M], event time in ms
    arrival: np.ndarray  # int64 [M], ms
    kind: np.ndarray  # uint8 [M]
    place: np.ndarray  # int64 [M], of the event in `events`
    events: pl.DataFrame

    def at(self, places: np.ndarray) -> History:
        """These events alone, in the order given."""
        row, time, arrival = self.row[places], self.time[places], self.arrival[places]
        return History(row, time, arrival, self.kind[places], self.place[places], self.events)

    def column(self, name: str) -> pl.Series:
        """One column of the events, in their order here."""
        return self.events[name].gather(self.place)


@dataclass(frozen=True)
class Asked:
    """L labels by entity and time."""

    row: np.ndarray  # int64 [L]
    time: np.ndarray  # int64 [L], ms

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def _bits(self) -> int:
        return int(self.time.max() - self.time.min() + 1).bit_length() if len(self) else 0

    @cached_property
    def _key(self) -> np.ndarray:
        return self.key(self.row, self.time)

    def key(self, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """int64 that sort as (row, time); times beyond all labels are the same to them."""
        if not len(self):
            return row
        first, last = self.time.min(), self.time.max()
        return np.asarray((row << self._bits) + (np.clip(time, first, last + 1) - first))

    def first_from(self, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Place of each row's first label at or after `time` (its end, where none is)."""
        return np.searchsorted(self._key, self.key(row, time), side="left")


def counts_at(
    definition: EntityDefinition, history: History, asked: Asked
) -> dict[str, np.ndarray]:
    """Every count and sum column, int64 [L], in the labels' sorted order."""
    seen_from = asked.first_from(history.row, history.arrival + 1)
    values = [_addends(counter, history) for counter in definition.counters]
    columns: dict[str, np.ndarray] = {}
    for window, named in definition.windows:
        start, stop = _run(window, history, asked, seen_from)
        counted = start < stop
        for slot, column in named:
            hit, value = values[slot]
            at = hit[counted[hit]]
            weight = None if value is None else value[counted[hit]]
            columns[column] = _total(start[at], stop[at], weight, len(asked))
    return columns


def _addends(counter: Counter, history: History) -> tuple[np.ndarray, np.ndarray | None]:
    """Places of the events that a counter counts, and what each adds (None: one)."""
    hit = np.flatnonzero(of_kinds(history.kind, counter.kinds))
    if not isinstance(counter, Sum):
        return hit, None
    addend = history.events[counter.source].gather(history.place[hit])
    return hit, addend.fill_null(0).to_numpy().astype(np.float64)


def _run(
    window: Window, history: History, asked: Asked, seen_from: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [M] each: the labels [start, stop) in which the window holds the event."""
    if not window.tile_ms:
        return seen_from, asked.first_from(history.row + 1, np.zeros_like(history.time))
    begins = history.time // window.tile_ms * window.tile_ms
    start, ahead = seen_from, np.flatnonzero(begins > history.arrival + 1)
    if len(ahead):
        start = seen_from.copy()
        start[ahead] = asked.first_from(history.row[ahead], begins[ahead])
    return start, asked.first_from(history.row, begins + window.tile_ms + window.span_ms)


def _total(start: np.ndarray, stop: np.ndarray, value: np.ndarray | None, n: int) -> np.ndarray:
    """Sum of the values whose run holds each label; exact below 2**53."""
    rise = np.bincount(start, value, n + 1)
    return np.cumsum(rise - np.bincount(stop, value, n + 1))[:n].astype(np.int64)


def newest_at(history: History, asked: Asked) -> np.ndarray:
    """int64 [L]: event time of the newest event that had arrived; 0 where none had."""
    from_label = asked.first_from(history.row, history.arrival + 1)
    own = from_label < asked.first_from(history.row + 1, np.zeros_like(history.time))
    newest = np.zeros(len(asked), np.int64)
    np.maximum.at(newest, from_label[own], history.time[own])
    if not len(asked):
        return newest
    bits = max(1, int(newest.max()).bit_length())
    running = np.maximum.accumulate((asked.row << bits) + newest)
    return np.asarray(running - (asked.row << bits))


def change_per_label(start: np.ndarray, stop: np.ndarray, n: int) -> np.ndarray:
    """int64 [n]: how many of the runs [start, stop) hold each label."""
    some = start < stop
    return _total(start[some], stop[some], None, n)
