"""An owner's features beside the shipped ones: which are accepted, and why others are not.

Knows declarations, signals and the event's columns. Does not know where an owner writes them
(`deploy.wiring`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from features.declarations import (
    KEY_COLUMNS,
    WINDOWS,
    Count,
    CountBy,
    Counter,
    Decayed,
    Derived,
    Distinct,
    Feature,
    Key,
    LastN,
    Ratio,
    Sum,
)
from features.store import EntityName
from streams.contract.bounds import declared_name_problem
from streams.contract.schema import EVENT_SCHEMA, with_added_columns
from streams.contract.signals import Signals

OwnFeatures = Mapping[EntityName, tuple[Feature, ...]]
FEATURE_TYPES = (Count, Sum, LastN, Ratio, Decayed, Distinct, CountBy, Key)
DERIVED_TYPES = (Ratio, Decayed, Distinct, CountBy)


# What readers and Feast's views have beside the features.
_TAKEN = frozenset({"status", "last_event_ms", "time_ms", *KEY_COLUMNS}) | {
    *("user_id", "video_id", "author_id", "query"),
}
_STATUS_END = "_row_status"


class FeatureConflict(ValueError):
    """An owner's feature contradicts the others or the contract; the message says how."""


def feature_problem(feature: Any, signals: Signals) -> str:
    """Why what an owner declared is wrong by itself; "": it is sound."""
    if not isinstance(feature, FEATURE_TYPES):
        names = ", ".join(each.__name__ for each in FEATURE_TYPES)
        return f"{feature!r} is no feature; declare {names}"
    kinds = getattr(feature, "kinds", ())
    if wrong := [kind for kind in kinds if kind not in signals.number]:
        return f"{wrong[0]!r} is no signal ({', '.join(signals.kinds)})"
    for name in _names(feature):
        problem = declared_name_problem(name, _TAKEN)
        if not problem and name.endswith(_STATUS_END):
            problem = f"names that end in {_STATUS_END} tell whether a row is there"
        if problem:
            return f"{name!r} cannot be a column: {problem}"
    windows = getattr(feature, "windows", ())
    if other := [window for window in windows if window not in WINDOWS]:
        known = ", ".join(window.name for window in WINDOWS)
        return f"{other[0]!r} is none of the windows {known}"
    return _source_problem(feature, signals) if isinstance(feature, Sum | LastN) else ""


def key_of(entity: EntityName, features: Sequence[Feature], signals: Signals) -> Key:
    """What identifies an entity of the owner's.

    Raises:
        FeatureConflict: its name, key or features do not make an entity.
    """
    if problem := declared_name_problem(entity, frozenset()):
        raise FeatureConflict(f"{entity!r} cannot be an entity: {problem}")
    keys = [feature for feature in features if isinstance(feature, Key)]
    if len(keys) != 1:
        raise FeatureConflict(
            f"{entity!r} is no shipped entity; one of your own declares one Key among its "
            f'features, such as Key("{KEY_COLUMNS[0]}"), and costs one more internal topic'
        )
    (key,) = keys
    columns = with_added_columns(EVENT_SCHEMA, signals).names
    if key.column not in KEY_COLUMNS or key.column not in columns:
        known = ", ".join(name for name in KEY_COLUMNS if name in columns)
        raise FeatureConflict(
            f"{entity}: {key.column!r} is no column to identify an entity by ({known}); "
            "text needs a signal with the payload text"
        )
    if not counted_kinds(features):
        raise FeatureConflict(f"{entity}: it has no count, sum or list, so no event has a row")
    return key


def counted_kinds(features: Sequence[Feature]) -> tuple[str, ...]:
    """The kinds of events that these features count or list."""
    stored = [each for each in features if isinstance(each, Count | Sum | LastN)]
    return tuple(dict.fromkeys(kind for each in stored for kind in each.kinds))


def _names(feature: Feature) -> tuple[str, ...]:
    if isinstance(feature, LastN):
        named = (feature.column, feature.kind_column, feature.time_column)
        return tuple(name for name in named if name is not None)
    if isinstance(feature, Sum):
        return (feature.stem,)
    return (feature.name,) if isinstance(feature, DERIVED_TYPES) else ()


def _source_problem(feature: Sum | LastN, signals: Signals) -> str:
    if isinstance(feature, LastN) and feature.n < 1:
        return f"{feature.column!r} keeps n = {feature.n} values, and must keep at least 1"
    wanted = pa.types.is_string if isinstance(feature, LastN) else pa.types.is_integer
    columns = with_added_columns(EVENT_SCHEMA, signals)
    fitting = [column.name for column in columns if wanted(column.type)]
    if feature.source in fitting:
        return ""
    return f"{feature.source!r} is no event column for this; {', '.join(fitting)} are"


def derived_problem(feature: Derived, counters: Sequence[Counter], lists: Sequence[LastN]) -> str:
    """Why the entity's counts and lists do not give it; "": they do."""
    if isinstance(feature, Ratio):
        return _ratio_problem(feature, counters)
    if isinstance(feature, Decayed):
        return _decayed_problem(feature, counters)
    return _list_problem(feature, lists)


def _ratio_problem(feature: Ratio, counters: Sequence[Counter]) -> str:
    if not feature.windows:
        return "has no windows"
    for stem in (feature.numerator, feature.denominator):
        counter = _counter(counters, stem)
        if counter is None:
            return f"refers to {stem!r}, {_no_counter(counters)}"
        if missing := [each.name for each in feature.windows if each not in counter.windows]:
            has = ", ".join(window.name for window in counter.windows)
            return f"has the window {missing[0]}, and {stem!r} has {has}"
    return ""


def _decayed_problem(feature: Decayed, counters: Sequence[Counter]) -> str:
    counter = _counter(counters, feature.of)
    if counter is None:
        return f"refers to {feature.of!r}, {_no_counter(counters)}"
    fitting = [window for window in counter.windows if window.tile_ms]
    if feature.window not in fitting:
        has = ", ".join(window.name for window in fitting) or "none"
        return f"has a window that does not fit; bounded windows of {feature.of!r}: {has}"
    if feature.half_life_ms < 1:
        return f"has half_life_ms = {feature.half_life_ms}, which must be at least 1"
    return ""


def _list_problem(feature: Distinct | CountBy, lists: Sequence[LastN]) -> str:
    source = next((each for each in lists if each.column == feature.of), None)
    if source is None:
        names = ", ".join(each.column for each in lists) or "none"
        return f"refers to {feature.of!r}, which is no list of this entity; lists: {names}"
    if feature.kinds and source.kind_column is None:
        return f"has kinds, and {feature.of!r} has no kind_column"
    if other := [kind for kind in feature.kinds if kind not in source.kinds]:
        return f"has the kind {other[0]!r}, which {feature.of!r} does not list"
    if feature.within_ms is not None and source.time_column is None:
        return f"has within_ms, and {feature.of!r} has no time_column"
    if feature.within_ms is not None and feature.within_ms < 1:
        return f"has within_ms = {feature.within_ms}, which must be at least 1"
    if isinstance(feature, CountBy) and feature.top < 1:
        return f"has top = {feature.top}, which must be at least 1"
    return ""


def _counter(counters: Sequence[Counter], stem: str) -> Counter | None:
    return next((each for each in counters if each.stem == stem), None)


def _no_counter(counters: Sequence[Counter]) -> str:
    stems = ", ".join(counter.stem for counter in counters)
    return f"which is no count or sum of this entity; these are: {stems}"
