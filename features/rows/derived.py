"""Derived features: values computed from a row's counts and lists whenever it is read.

Knows columns and each reader's `now`. Does not know rows, stores or the log: the online reader,
Feast's on-demand views and the point-in-time join hand over equal columns and so get equal
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from features.declarations import CountBy, Decayed, Derived, Distinct, LastN, Ratio
from features.definitions import EntityDefinition

Columns = Mapping[str, np.ndarray]


def derived_columns(
    definition: EntityDefinition, columns: Columns, now: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of every derived column, for N rows read at `now` (int64 [N], ms).

    columns: `definition.counted_columns`, int64 [N], and the columns of `source_lists`, object
    [N] of lists, newest first.
    """
    lists = {feature.column: feature for feature in definition.lists}
    for feature in definition.derived:
        yield from _values(feature, lists, columns, now)


def source_lists(definition: EntityDefinition) -> tuple[LastN, ...]:
    """The lists that derived features are computed from."""
    wanted = {each.of for each in definition.derived if isinstance(each, Distinct | CountBy)}
    return tuple(feature for feature in definition.lists if feature.column in wanted)


def _values(
    feature: Derived, lists: Mapping[str, LastN], columns: Columns, now: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(feature, Ratio):
        for window in feature.windows:
            above, below = (
                columns[f"{stem}_{window.name}"]
                for stem in (feature.numerator, feature.denominator)
            )
            yield feature.column(window), _ratio(above, below)
    elif isinstance(feature, Decayed):
        yield feature.name, _decayed(feature, columns, now)
    else:
        kept = _kept(feature, lists[feature.of], columns, now)
        if isinstance(feature, Distinct):
            yield feature.name, np.fromiter((len(set(each)) for each in kept), np.int64, len(now))
        else:
            yield from _most_frequent(feature, kept, len(now))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """float64 [N]; NaN where `below` is 0."""
    ratio = np.full(len(below), np.nan)
    np.divide(above, below, out=ratio, where=below != 0)
    return ratio


def _decayed(feature: Decayed, columns: Columns, now: np.ndarray) -> np.ndarray:
    """float64 [N]. Each step's own events are what its window adds to the window before it."""
    total, before, end = np.zeros(len(now)), np.zeros(len(now), np.int64), now
    for name, window in feature.steps:
        start = (now - window.span_ms) // window.tile_ms * window.tile_ms
        age = now - (start + end) / 2
        total += (columns[name] - before) * np.exp2(-age / feature.half_life_ms)
        before, end = columns[name], start
    return total


def _kept(
    feature: Distinct | CountBy, source: LastN, columns: Columns, now: np.ndarray
) -> Iterator[list[str]]:
    """Each row's listed values of the kinds and the time that the feature counts, newest first."""
    texts = columns[source.column]
    if not feature.kinds and feature.within_ms is None:
        yield from texts
        return
    # Where a column is not declared it is not compared either: any list of its length will do.
    kinds = columns[source.kind_column or source.column]
    times = columns[source.time_column or source.column]
    for row, since in enumerate((now - (feature.within_ms or 0)).tolist()):
        listed = zip(texts[row], kinds[row], times[row], strict=True)
        yield [
            text
            for text, kind, time in listed
            if (not feature.kinds or kind in feature.kinds)
            and (feature.within_ms is None or time > since)
        ]


def _most_frequent(
    feature: CountBy, kept: Iterator[list[str]], n: int
) -> Iterator[tuple[str, np.ndarray]]:
    values, counts = np.empty(n, object), np.empty(n, object)
    for row, texts in enumerate(kept):
        found: dict[str, int] = {}
        for text in texts:  # newest first, so that of equal counts the last seen comes first
            found[text] = found.get(text, 0) + 1
        top = sorted(found, key=found.__getitem__, reverse=True)[: feature.top]
        values[row], counts[row] = top, [found[text] for text in top]
    yield feature.name, values
    yield feature.count_column, counts
