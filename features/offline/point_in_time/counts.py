"""Counts and sums at labels without folding: differences of running sums over events.

Knows windows, tiles and the order of events and labels. Does not know rows or stores. A
window's value at a label is the sum over its entity's events between two places: the start of
the oldest tile and the label. All counters share those places. Events in flight are subtracted
and events ahead added over their runs of labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.definitions import (
    Count,
    Counter,
    EntityDefinition,
    Sum,
    Window,
    is_kind,
    kind_codes,
)
from features.offline.point_in_time.order import EventHistory, LabelOrder, LabelRuns

_INTEGER_BITS = 64


@dataclass(frozen=True)
class _RunningSums:
    """Counters packed into one integer per event, `bits` each. No counter exceeds the number of
    events, so none carries into the next, and differences unpack exactly."""

    value: np.ndarray  # int64 [M], each event's addend
    bits: int  # per counter; 64: one sum with the integer to itself
    slots: tuple[int, ...]  # the counters' slots in the definition, lowest bits first
    running: np.ndarray  # int64 [M + 1], the sum over the events before each place
    until: np.ndarray  # int64 [L], the sum over the events before each label

    @classmethod
    def of(
        cls, value: np.ndarray, bits: int, slots: tuple[int, ...], now: np.ndarray
    ) -> _RunningSums:
        running = np.zeros(len(value) + 1, np.int64)
        np.cumsum(value, out=running[1:])
        return cls(value, bits, slots, running, running.take(now))

    def since(self, start: np.ndarray, changes: _Changes) -> np.ndarray:
        """int64 [L]: the sums from these places to the labels, with the changes applied."""
        total = self.until - self.running.take(start)
        added = self.value.take(changes.event)
        mine = np.flatnonzero(added)
        if len(mine):
            delta = np.zeros(len(total) + 1, np.int64)
            np.add.at(delta, changes.label[mine], added[mine] * changes.sign[mine])
            total += np.cumsum(delta, out=delta)[:-1]
        return np.asarray(total)

    def split(self, total: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(slot, int64 of the same length) of each counter."""
        if self.bits == _INTEGER_BITS:
            yield self.slots[0], total
            return
        for place, slot in enumerate(self.slots):
            part = total >> place * self.bits
            part &= (1 << self.bits) - 1
            yield slot, part


@dataclass(frozen=True)
class _Changes:
    """Events whose addend is added (1) or subtracted (-1) from a label on."""

    event: np.ndarray  # int64 [C], places among the events
    label: np.ndarray  # int64 [C]
    sign: np.ndarray  # int32 [C]

    @classmethod
    def of(cls, missing: LabelRuns, early: LabelRuns) -> _Changes:
        """A missing event is subtracted at its run's start and added back at its end."""
        parts = (missing.start, missing.stop, early.start, early.stop)
        signs = np.repeat(np.array([-1, 1, 1, -1], np.int32), [len(part) for part in parts])
        events = [missing.event, missing.event, early.event, early.event]
        return cls(np.concatenate(events), np.concatenate(parts), signs)


def counts_at(
    definition: EntityDefinition, order: LabelOrder, history: EventHistory, back: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, int64 [L]) of every counted column, labels in the order `back` (int64 [L])."""
    sums = [_sum(definition, slot, order, history) for slot in _slots(definition, Sum)]
    groups = [*_counts(definition, order, history), *sums]
    for window, named in definition.windows:
        start = _window_start(window, order)
        changes = _Changes.of(_missing(window, order), _early(window, order))
        columns = dict(named)
        for group in groups:
            if columns.keys().isdisjoint(group.slots):
                continue
            for slot, total in group.split(group.since(start, changes)[back]):
                if slot in columns:
                    yield columns[slot], total


def _slots(definition: EntityDefinition, kind: type[Counter]) -> list[int]:
    return [slot for slot, counter in enumerate(definition.counters) if isinstance(counter, kind)]


def _counts(
    definition: EntityDefinition, order: LabelOrder, history: EventHistory
) -> Iterator[_RunningSums]:
    """The counts, as many per integer as fit."""
    bits = max(1, len(history.kind).bit_length())
    slots, together = _slots(definition, Count), (_INTEGER_BITS - 1) // bits
    for at in range(0, len(slots), together):
        part = tuple(slots[at : at + together])
        adds = np.zeros(256, np.int64)
        for place, slot in enumerate(part):
            adds[kind_codes(definition.counters[slot].kinds)] += 1 << place * bits
        yield _RunningSums.of(adds.take(history.kind), bits, part, order.label_place)


def _sum(
    definition: EntityDefinition, slot: int, order: LabelOrder, history: EventHistory
) -> _RunningSums:
    counter = definition.counters[slot]
    assert isinstance(counter, Sum)
    value = history.column(counter.source).cast(pl.Int64).fill_null(0).to_numpy()
    value = value * is_kind(history.kind, counter.kinds)
    return _RunningSums.of(value, _INTEGER_BITS, (slot,), order.label_place)


def _window_start(window: Window, order: LabelOrder) -> np.ndarray:
    """int64 [L]: place of the first event in the window's oldest tile or later."""
    if not window.tile_ms:
        return order.row_start
    oldest = (order.labels.time - window.span_ms) // window.tile_ms * window.tile_ms
    return order.events.first_from(order.labels.row, oldest)


def _missing(window: Window, order: LabelOrder) -> LabelRuns:
    """Events in flight, for as long as the window reaches back to them."""
    runs = order.in_flight
    if not window.tile_ms:
        return runs
    leaves = _tile(window, order, runs) + window.tile_ms + window.span_ms
    out = np.flatnonzero(leaves <= order.arrival[runs.event])
    stop = runs.stop.copy()
    stop[out] = order.labels.first_from(order.events.row[runs.event[out]], leaves[out])
    return LabelRuns.non_empty(runs.event, runs.start, np.minimum(stop, runs.stop))


def _early(window: Window, order: LabelOrder) -> LabelRuns:
    """Events ahead, once their tile has started."""
    runs = order.ahead
    if not window.tile_ms:
        return runs
    shown = order.labels.first_from(order.events.row[runs.event], _tile(window, order, runs))
    return LabelRuns.non_empty(runs.event, np.maximum(runs.start, shown), runs.stop)


def _tile(window: Window, order: LabelOrder, runs: LabelRuns) -> np.ndarray:
    """int64 [R]: start of the events' tiles, ms."""
    return np.asarray(order.events.time[runs.event] // window.tile_ms * window.tile_ms)
