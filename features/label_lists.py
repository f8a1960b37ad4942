"""Last-n lists at labels without folding: ranges of the entity's events, newest first.

Knows event order, arrivals and labels. Does not know rows or stores. Where all that
happened before a label had arrived, but for its newest events, the list is one slice.
Only labels with a gap further back (a late event under way) or with events ahead of
their clock are sorted out event by event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from features.definitions import EntityDefinition, LastN, of_kinds
from features.finish import uncollected
from features.label_runs import Asked, History, change_per_label
from streams.events import KINDS

EVENTS_AT_ONCE = 2_000_000  # looked at together: bounds memory where much is under way


@dataclass(frozen=True)
class _Ranges:
    """Per label the places [low, high) of its list, where `whole`; else the search's bounds."""

    low: np.ndarray
    high: np.ndarray
    whole: np.ndarray


def lists_at(definition: EntityDefinition, history: History, asked: Asked) -> dict[str, np.ndarray]:
    """Every last-n column, object [L] of lists, in the labels' sorted order."""
    columns: dict[str, np.ndarray] = {}
    for feature in definition.lists:
        listed = history.at(np.flatnonzero(of_kinds(history.kind, feature.kinds)))
        named = listed.column(feature.source).is_not_null().to_numpy()
        listed = listed if named.all() else listed.at(np.flatnonzero(named))
        ranges = _ranges(feature.n, listed, asked)
        picked = list(_picked(feature.n, listed, asked, ranges))
        for name, values in _values(feature, listed):
            columns[name] = _column(values, ranges, picked)
    return columns


def _values(feature: LastN, listed: History) -> Iterator[tuple[str, list[object]]]:
    """Column name and its value at every event, oldest first."""
    yield feature.column, listed.column(feature.source).to_list()
    if feature.kind_column is not None:
        yield feature.kind_column, np.array(KINDS, object)[listed.kind].tolist()
    if feature.time_column is not None:
        yield feature.time_column, listed.time.tolist()


def _ranges(n: int, listed: History, asked: Asked) -> _Ranges:
    happened = asked.first_from(listed.row, listed.time)
    arrived = asked.first_from(listed.row, listed.arrival + 1)
    under_way = change_per_label(happened, arrived, len(asked))
    ahead = change_per_label(arrived, happened, len(asked)) > 0
    first, stop = _places(listed, asked, 0)
    newest_seen = stop - under_way
    all_seen = _latest_arrival(listed, first, newest_seen) < asked.time
    whole = all_seen & ~ahead
    if ahead.any():
        slack = int((listed.time - listed.arrival).max())
        stop = np.where(ahead, _places(listed, asked, slack)[1], stop)
    high = np.where(whole, newest_seen, stop)
    low = np.where(whole, high - n, np.where(ahead, first, stop - under_way - n))
    return _Ranges(np.maximum(low, first), high, whole)


def _places(listed: History, asked: Asked, slack_ms: int) -> tuple[np.ndarray, np.ndarray]:
    """Per label its entity's first event, and one past the last until its time + slack."""
    if not len(listed.row):
        zeros = np.zeros(len(asked), np.int64)
        return zeros, zeros
    first = np.searchsorted(listed.row, asked.row, side="left")
    last = np.searchsorted(listed.row, asked.row, side="right")
    start = listed.time.min()
    bits = int(listed.time.max() - start + 1).bit_length()
    key = (listed.row << bits) + (listed.time - start)
    until = np.clip(asked.time + slack_ms - start, 0, (1 << bits) - 1)
    stop = np.searchsorted(key, (asked.row << bits) + until, side="right")
    before = asked.time + slack_ms < start
    return first, np.where(before, first, np.clip(stop, first, last))


def _latest_arrival(listed: History, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Per label the latest arrival among its entity's events before `stop`; 0 where none."""
    if not len(listed.row):
        return np.zeros(len(first), np.int64)
    arrival = np.maximum(listed.arrival, 0)
    bits = max(1, int(arrival.max()).bit_length())
    running = np.maximum.accumulate((listed.row << bits) + arrival) - (listed.row << bits)
    return np.where(stop > first, running[np.maximum(stop - 1, 0)], 0)


def _picked(
    n: int, listed: History, asked: Asked, ranges: _Ranges
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(labels, places of their events newest first, events per label) of broken ranges."""
    broken = np.flatnonzero(~ranges.whole)
    size = np.cumsum((ranges.high - ranges.low)[broken])
    chunk = size // EVENTS_AT_ONCE
    for part in np.split(broken, np.flatnonzero(chunk[1:] != chunk[:-1]) + 1):
        if len(part) == 0:
            continue
        length = ranges.high[part] - ranges.low[part]
        owner = np.repeat(np.arange(len(part)), length)
        begin = np.cumsum(length) - length
        place = ranges.high[part][owner] - 1 - (np.arange(len(owner)) - begin[owner])
        now = asked.time[part][owner]
        seen = listed.arrival[place] < now
        before = np.concatenate([[0], np.cumsum(seen)])
        rank = before[1:] - before[begin][owner]
        keep = seen & (rank <= n) & (listed.time[place] <= now)
        yield part, place[keep], np.bincount(owner[keep], minlength=len(part))


def _column(
    oldest_first: list[object],
    ranges: _Ranges,
    picked: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> np.ndarray:
    newest_first = oldest_first[::-1]
    size = len(newest_first)
    column = np.empty(len(ranges.whole), object)
    whole = np.flatnonzero(ranges.whole)
    starts, stops = size - ranges.high[whole], size - ranges.low[whole]
    column[whole] = _slices(newest_first, starts, stops)
    for labels, places, counts in picked:
        values = np.array(oldest_first, object)[places].tolist()
        stop = np.cumsum(counts)
        column[labels] = _slices(values, stop - counts, stop)
    return column


def _slices(values: list[object], starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """object [L]: one list per slice."""
    slices = map(slice, starts.tolist(), stops.tolist())
    with uncollected():
        return np.fromiter(map(values.__getitem__, slices), object, len(starts))
