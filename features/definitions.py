"""The features per user, item, author and query, each declared once, and those of an owner.

Knows names, event kinds, windows and list lengths. Does not know how a value is folded
(`features.rows.aggregate`), stored (`features.kernels.layout`) or served
(`features.feast.registry`): those read these declarations. Column names are a contract with
`models`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import xxhash

from features.declarations import (
    ALL,
    DAY,
    HOUR,
    MONTH,
    TILE_SIZES_MS,
    WEEK,
    WINDOWS,
    ColumnType,
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
    Window,
)
from features.own_features import (
    DERIVED_TYPES,
    FeatureConflict,
    OwnFeatures,
    counted_kinds,
    derived_problem,
    feature_problem,
    key_of,
)
from features.store import EntityName
from streams.contract.clock import DAY_MS
from streams.contract.declaration import contract
from streams.contract.signals import ENGAGED, PROFILE, Signals

__all__ = [
    "ALL",
    "DAY",
    "DEFINITIONS",
    "HOUR",
    "MONTH",
    "SHIPPED",
    "TILE_SIZES_MS",
    "WEEK",
    "WINDOWS",
    "Count",
    "CountBy",
    "Counter",
    "Decayed",
    "Distinct",
    "EntityDefinition",
    "FeatureConflict",
    "Key",
    "LastN",
    "Ratio",
    "Sum",
    "Window",
    "is_kind",
    "kind_codes",
]


@dataclass(frozen=True)
class WindowTables:
    """Windows as arrays, by tile size: those of size s are `first[s]` to `first[s + 1]`."""

    first: np.ndarray  # int64 [sizes + 1]
    span_ms: np.ndarray  # int64 [windows]
    column: np.ndarray  # int64 [windows, counters]: place in `counted_columns`, -1 for none


@dataclass(frozen=True)
class EntityDefinition:
    """One entity's row: the event column that identifies it, and what it keeps of its events.

    `recent`: how many event ids a row remembers (the newest by event time), so that an event
    republished to a recreated topic is not counted twice. `ttl_ms`: a row whose newest event is
    older reads as expired. `kinds`: of the events that have a row; None: all that name the entity.
    """

    name: EntityName
    id_column: str
    counters: tuple[Counter, ...]
    lists: tuple[LastN, ...]
    ttl_ms: int
    recent: int
    derived: tuple[Derived, ...] = ()
    kinds: tuple[str, ...] | None = None

    @cached_property
    def count_columns(self) -> tuple[str, ...]:
        """int64 columns, in declared order."""
        return tuple(c.column(w) for c in self.counters for w in c.windows)

    @cached_property
    def event_columns(self) -> tuple[str, ...]:
        """The event columns that the row needs, beside kind, time and event id."""
        sums = [c.source for c in self.counters if isinstance(c, Sum)]
        return (self.id_column, *sums, *(feature.source for feature in self.lists))

    @cached_property
    def text_list_columns(self) -> tuple[str, ...]:
        """Columns whose values are lists of str."""
        return tuple(
            name
            for feature in self.lists
            for name in (feature.column, feature.kind_column)
            if name is not None
        )

    @cached_property
    def time_list_columns(self) -> tuple[str, ...]:
        """Columns whose values are lists of int: event times in ms."""
        return tuple(f.time_column for f in self.lists if f.time_column is not None)

    @cached_property
    def column_types(self) -> Mapping[str, ColumnType]:
        """Every column that readers get, in declared order, derived ones last."""
        types: dict[str, ColumnType] = dict.fromkeys(self.count_columns, "integer")
        types |= dict.fromkeys(self.text_list_columns, "texts")
        types |= dict.fromkeys(self.time_list_columns, "integers")
        for feature in self.derived:
            types |= feature.columns
        return MappingProxyType(types)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.column_types)

    @cached_property
    def counted_columns(self) -> tuple[str, ...]:
        """`count_columns`, and those that only `Decayed` features read."""
        steps = (name for each in self._decayed for name, _ in each.steps)
        return tuple(dict.fromkeys((*self.count_columns, *steps)))

    @property
    def _decayed(self) -> tuple[Decayed, ...]:
        return tuple(each for each in self.derived if isinstance(each, Decayed))

    @cached_property
    def fingerprint(self) -> int:
        """32 bits that change whenever stored rows have to be rebuilt. Derived features are not
        stored."""
        parts = [self.name, self.id_column, str(self.recent)]
        parts += [f"{c!r}" for c in (*self.counters, *self.lists)]
        return xxhash.xxh32_intdigest("|".join(parts).encode())

    @cached_property
    def windows(self) -> tuple[tuple[Window, tuple[tuple[int, str], ...]], ...]:
        """Each window in use, with (counter slot, column) of the counters that it counts."""
        found: dict[Window, dict[str, int]] = {}
        for slot, counter in enumerate(self.counters):
            for window in counter.windows:
                found.setdefault(window, {})[counter.column(window)] = slot
        slots = {counter.stem: slot for slot, counter in enumerate(self.counters)}
        for feature in self._decayed:
            for name, window in feature.steps:
                found.setdefault(window, {})[name] = slots[feature.of]
        return tuple(
            (window, tuple((slot, name) for name, slot in named.items()))
            for window, named in found.items()
        )

    @cached_property
    def window_tables(self) -> WindowTables:
        by_size = sorted(self.windows, key=lambda each: TILE_SIZES_MS.index(each[0].tile_ms))
        sizes = [TILE_SIZES_MS.index(window.tile_ms) for window, _ in by_size]
        column = np.full((len(by_size), len(self.counters)), -1, np.int64)
        for row, (_, named) in enumerate(by_size):
            for slot, name in named:
                column[row, slot] = self.counted_columns.index(name)
        first = np.searchsorted(sizes, np.arange(len(TILE_SIZES_MS) + 1)).astype(np.int64)
        return WindowTables(first, np.array([w.span_ms for w, _ in by_size], np.int64), column)


DWELL_KINDS = ("skip", "play", "long_view")
ROW_TTL_MS = 400 * DAY_MS  # admission refuses older events


def _counts(*kinds: str) -> tuple[Count, ...]:
    return tuple(Count(kind) for kind in kinds)


USER = EntityDefinition(
    name="user",
    id_column="user_id",
    counters=(
        *_counts("shown", "skip", "play", "long_view", "like", "share", "follow"),
        *_counts("query_click", "search", "cart", "order"),
        Sum("dwell_ms", DWELL_KINDS, (DAY, WEEK, ALL)),
    ),
    lists=(
        LastN("engaged_video_id", "video_id", ENGAGED, 50, "engaged_kind", "engaged_time_ms"),
        LastN("shown_video_id", "video_id", ("shown",), 100),
        LastN("clicked_query", "query", ("query_click", "search"), 20),
    ),
    ttl_ms=ROW_TTL_MS,
    recent=128,
)

ITEM = EntityDefinition(
    name="video",
    id_column="video_id",
    counters=(
        *_counts("shown", "play", "long_view", "like", "share", "follow", "order", "query_click"),
        Sum("dwell_ms", DWELL_KINDS, (WEEK, ALL)),
    ),
    lists=(LastN("clicked_query", "query", ("query_click",), 50),),
    ttl_ms=ROW_TTL_MS,
    recent=64,
)

AUTHOR = EntityDefinition(
    name="author",
    id_column="author_id",
    counters=_counts("play", "long_view", "like", "follow", "order"),
    lists=(),
    ttl_ms=ROW_TTL_MS,
    recent=64,
)

QUERY = EntityDefinition(
    name="query",
    id_column="query",
    counters=_counts("query_shown", "query_click", "search"),
    lists=(),
    ttl_ms=ROW_TTL_MS,
    recent=64,
)

SHIPPED: MappingProxyType[EntityName, EntityDefinition] = MappingProxyType(
    {definition.name: definition for definition in (USER, ITEM, AUTHOR, QUERY)}
)
COUNTED: tuple[EntityName, ...] = ("user", "video", "author")
"""The entities that count every declared signal."""
ATTRIBUTES = LastN("attributes", "text", (PROFILE.name,), 1)
"""The user's attributes as JSON, of a stack that declares them (`features.rows.attributes` reads it)."""

_NO_FEATURES: OwnFeatures = MappingProxyType({})


class _Definitions(Mapping[EntityName, EntityDefinition]):
    """The definitions in force: shipped, counts of declared signals, and the owner's features."""

    def __init__(self) -> None:
        self._own = _NO_FEATURES
        self._built: tuple[Signals, Mapping[EntityName, EntityDefinition]] | None = None

    def __getitem__(self, entity: EntityName) -> EntityDefinition:
        return self._in_force()[entity]

    def __iter__(self) -> Iterator[EntityName]:
        return iter(self._in_force())

    def __len__(self) -> int:
        return len(self._in_force())

    def _in_force(self) -> Mapping[EntityName, EntityDefinition]:
        signals, built = contract().signals, self._built
        if built is None or built[0] is not signals:
            built = self._built = signals, definitions_of(signals, self._own)
        return built[1]

    @property
    def own(self) -> OwnFeatures:
        """The owner's features in force."""
        return self._own

    def add(self, own: OwnFeatures) -> None:
        """Replaces the owner's features, for this process.

        Raises:
            FeatureConflict: an entity, a kind, an event column or a name is wrong; the features
                before stay in force.
        """
        extended = definitions_of(contract().signals, own)
        self._own, self._built = own, (contract().signals, extended)


def definitions_of(signals: Signals, own: OwnFeatures) -> Mapping[EntityName, EntityDefinition]:
    """The shipped definitions, with counts of declared signals and an owner's features, and after
    them those of the owner's own entities.

    Raises:
        FeatureConflict: as `DEFINITIONS.add`.
    """
    counted = tuple(Count(each.name) for each in signals.declared if each != PROFILE)
    shipped = {
        entity: _with_features(
            definition, counted if entity in COUNTED else (), tuple(own.get(entity, ())), signals
        )
        for entity, definition in SHIPPED.items()
    }
    added = {
        entity: _own_entity(entity, tuple(features), signals)
        for entity, features in own.items()
        if entity not in SHIPPED
    }
    return shipped | added


def _own_entity(
    entity: EntityName, features: tuple[Feature, ...], signals: Signals
) -> EntityDefinition:
    for feature in features:
        if problem := feature_problem(feature, signals):
            raise FeatureConflict(f"{entity}: {problem}")
    key = key_of(entity, features, signals)
    bare = EntityDefinition(
        entity, key.column, (), (), ROW_TTL_MS, 64, kinds=counted_kinds(features)
    )
    return _with_features(bare, (), tuple(f for f in features if f != key), signals)


def _with_features(
    definition: EntityDefinition,
    counted: tuple[Count, ...],
    own: tuple[Feature, ...],
    signals: Signals,
) -> EntityDefinition:
    listed = (ATTRIBUTES,) if signals.user_attributes and definition.name == "user" else ()
    if not counted and not listed and not own:
        return definition
    for feature in own:
        if problem := feature_problem(feature, signals):
            raise FeatureConflict(f"{definition.name}: {problem}")
        if isinstance(feature, Key):
            raise FeatureConflict(
                f"{definition.name}: it has a key already, {definition.id_column!r}"
            )
    counters = (*definition.counters, *counted, *(f for f in own if isinstance(f, Counter)))
    own_lists = (f for f in own if isinstance(f, LastN))
    lists = (*(_with_engaged(f, signals) for f in definition.lists), *listed, *own_lists)
    derived = tuple(feature for feature in own if isinstance(feature, DERIVED_TYPES))
    for feature in derived:
        if problem := derived_problem(feature, counters, lists):
            raise FeatureConflict(f"{definition.name}: {feature.name!r} {problem}")
    extended = replace(definition, counters=counters, lists=lists, derived=derived)
    names = [*extended.count_columns, *extended.text_list_columns, *extended.time_list_columns]
    names += [name for feature in derived for name in feature.columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise FeatureConflict(f"{definition.name}: {twice[0]!r} is declared twice")
    return extended


def _with_engaged(feature: LastN, signals: Signals) -> LastN:
    """The list of a user's engagements also takes declared ones."""
    return replace(feature, kinds=signals.engaged) if feature.kinds == ENGAGED else feature


DEFINITIONS = _Definitions()


def kind_codes(kinds: tuple[str, ...]) -> list[int]:
    """The numbers of these kinds (`streams.contract.signals`)."""
    number = contract().signals.number
    return [number[kind] for kind in kinds]


def is_kind(codes: np.ndarray, kinds: tuple[str, ...]) -> np.ndarray:
    """bool [N]: whether each wire code (uint8 [N]) is of one of these kinds."""
    first, *others = kind_codes(kinds)
    if not others:
        return np.asarray(codes == first)
    wanted = np.zeros(256, bool)
    wanted[[first, *others]] = True
    return wanted.take(codes)
