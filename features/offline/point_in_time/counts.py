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

from features.definitions import (
    Count,
    Counter,
    EntityDefinition,
    Sum,
    Window,
    kind_codes,
    of_kinds,
)
from features.offline.point_in_time.order import History, Order, Runs

_WHOLE = 64  # bits of an integer


@dataclass(frozen=True)
class _Running:
    """Counters that share one integer per event, `bits` for each: what one adds carries into
    no other, for no counter exceeds the number of events, and differences come out whole."""

    value: np.ndarray  # int64 [M], what each event adds
    bits: int  # of one counter; 64: a sum, which has the integer to itself
    slots: tuple[int, ...]  # the counters' places in the definition, lowest bits first
    running: np.ndarray  # int64 [M + 1], what the events before each place add up to
    until: np.ndarray  # int64 [L], what the events before each label add up to

    @classmethod
    def of(cls, value: np.ndarray, bits: int, slots: tuple[int, ...], now: np.ndarray) -> _Running:
        running = np.zeros(len(value) + 1, np.int64)
        np.cumsum(value, out=running[1:])
        return cls(value, bits, slots, running, running.take(now))

    def since(self, start: np.ndarray, changes: _Changes) -> np.ndarray:
        """int64 [L]: what the events from these places until the labels add, changes made."""
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
        if self.bits == _WHOLE:
            yield self.slots[0], total
            return
        for place, slot in enumerate(self.slots):
            part = total >> place * self.bits
            part &= (1 << self.bits) - 1
            yield slot, part


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
    definition: EntityDefinition, order: Order, history: History, back: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Every count and sum column, int64 [L], labels in the order of `back` (int64 [L], places)."""
    sums = [_sum(definition, slot, order, history) for slot in _slots(definition, Sum)]
    groups = [*_counts(definition, order, history), *sums]
    for window, named in definition.windows:
        start = _begin(window, order)
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


def _counts(definition: EntityDefinition, order: Order, history: History) -> Iterator[_Running]:
    """The counters of events, as many together as an integer holds."""
    bits = max(1, len(history.kind).bit_length())
    slots, together = _slots(definition, Count), (_WHOLE - 1) // bits
    for at in range(0, len(slots), together):
        part = tuple(slots[at : at + together])
        adds = np.zeros(256, np.int64)
        for place, slot in enumerate(part):
            adds[kind_codes(definition.counters[slot].kinds)] += 1 << place * bits
        yield _Running.of(adds.take(history.kind), bits, part, order.now)


def _sum(definition: EntityDefinition, slot: int, order: Order, history: History) -> _Running:
    counter = definition.counters[slot]
    assert isinstance(counter, Sum)
    value = history.column(counter.source).cast(pl.Int64).fill_null(0).to_numpy()
    value = value * of_kinds(history.kind, counter.kinds)
    return _Running.of(value, _WHOLE, (slot,), order.now)


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
