"""Counts and sums at labels without folding: differences of running sums over events.

Knows windows, tiles and the order of events and labels. Does not know rows or stores.
What a window holds at a label is what its entity's events add up to between two places:
the oldest tile's begin and the label itself. Every counter shares those places; events
under way are taken off and events ahead added where a run of labels holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.definitions import Counter, EntityDefinition, Sum, Window, of_kinds
from features.label_order import History, Order, Runs


@dataclass(frozen=True)
class _Counted:
    """What one counter counts."""

    hit: np.ndarray  # bool [M]
    value: np.ndarray | None  # int64 [M], what each hit adds; None: one
    running: np.ndarray  # int32 (sums: int64) [M + 1], what the events before each place add up to

    until: np.ndarray  # [L], what the events before each label add up to

    def since(self, start: np.ndarray) -> np.ndarray:
        """[L]: what the events from these places until the labels add."""
        return np.asarray(self.until - self.running.take(start))

    def changed(self, changes: _Changes, n: int) -> np.ndarray | int:
        """[n]: what these changes make of each label's value; 0 where none is counted."""
        mine = np.flatnonzero(self.hit[changes.event])
        if not len(mine):
            return 0
        added = changes.sign[mine]
        if self.value is not None:
            added = added * self.value[changes.event[mine]]
        delta = np.zeros(n + 1, self.running.dtype)
        np.add.at(delta, changes.label[mine], added)
        return np.cumsum(delta, out=delta)[:n]


@dataclass(frozen=True)
class _Changes:
    """Events that count more (1) or less (-1) from a label on."""

    event: np.ndarray  # int64 [C], places among the events
    label: np.ndarray  # int64 [C]
    sign: np.ndarray  # int32 [C]

    @classmethod
    def of(cls, missing: Runs, early: Runs) -> _Changes:
        """A run that is missing takes its events off at its start and gives them back."""
        parts = (missing.start, missing.stop, early.start, early.stop)
        signs = np.repeat(np.array([-1, 1, 1, -1], np.int32), [len(part) for part in parts])
        events = [missing.event, missing.event, early.event, early.event]
        return cls(np.concatenate(events), np.concatenate(parts), signs)


def counts_at(
    definition: EntityDefinition, order: Order, history: History
) -> Iterator[tuple[str, np.ndarray]]:
    """Every count and sum column, integers [L], in the labels' sorted order."""
    counted = [_counted(counter, order, history) for counter in definition.counters]
    n = len(order.labels.row)
    for window, named in definition.windows:
        start = _begin(window, order)
        changes = _Changes.of(_missing(window, order), _early(window, order))
        for slot, column in named:
            total = counted[slot].since(start)
            total += counted[slot].changed(changes, n)
            yield column, total


def _counted(counter: Counter, order: Order, history: History) -> _Counted:
    hit = of_kinds(history.kind, counter.kinds)
    if not isinstance(counter, Sum):
        running = _running(hit, np.int32 if len(hit) < 2**31 else np.int64)
        return _Counted(hit, None, running, running.take(order.now))
    value = history.column(counter.source).cast(pl.Int64).fill_null(0).to_numpy() * hit
    running = _running(value, np.int64)
    return _Counted(hit, value, running, running.take(order.now))


def _running(value: np.ndarray, dtype: type[np.signedinteger]) -> np.ndarray:
    running = np.zeros(len(value) + 1, dtype)
    np.cumsum(value, dtype=dtype, out=running[1:])
    return running


def _begin(window: Window, order: Order) -> np.ndarray:
    """int64 [L]: place of the first event in the window's oldest tile or later."""
    if not window.tile_ms:
        return order.first
    oldest = (order.labels.time - window.span_ms) // window.tile_ms * window.tile_ms
    return order.events.first_from(order.labels.row, oldest)


def _missing(window: Window, order: Order) -> Runs:
    """Events under way, for as long as the window reaches back to them."""
    runs = order.under_way
    if not window.tile_ms:
        return runs
    leaves = _tile(window, order, runs) + window.tile_ms + window.span_ms
    out = np.flatnonzero(leaves <= order.arrival[runs.event])
    stop = runs.stop.copy()
    stop[out] = order.labels.first_from(order.events.row[runs.event[out]], leaves[out])
    return Runs.some(runs.event, runs.start, np.minimum(stop, runs.stop))


def _early(window: Window, order: Order) -> Runs:
    """Events ahead, once their tile has begun."""
    runs = order.ahead
    if not window.tile_ms:
        return runs
    begun = order.labels.first_from(order.events.row[runs.event], _tile(window, order, runs))
    return Runs.some(runs.event, np.maximum(runs.start, begun), runs.stop)


def _tile(window: Window, order: Order, runs: Runs) -> np.ndarray:
    """int64 [R]: when the events' tiles begin, ms."""
    return np.asarray(order.events.time[runs.event] // window.tile_ms * window.tile_ms)
