"""The features per user, item, author and query, each declared once, and those of an owner.

Knows names, event kinds, windows and list lengths. Does not know how a value is folded
(`features.rows.aggregate`), stored (`features.kernels.layout`) or served
(`features.feast.registry`): those read these declarations. Column names are a contract with
`models`.

A window is a sawtooth over tiles (Chronon's rule): at `now` it counts the tiles from the one
that holds `now - window` to the one that holds `now`, so it is never shorter than declared and
at most one tile longer. An event ahead of the reader's clock counts once its tile has started
(in `all` at once) and is listed once its time has come. Tiles are 5 minutes for the hour's
window, 1 hour for windows of up to a week, 1 day above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import xxhash

from features.store import EntityName
from streams.contract.bounds import declared_name_problem
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS
from streams.contract.declaration import contract
from streams.contract.schema import event_schema
from streams.contract.signals import PROFILE, Signals


@dataclass(frozen=True)
class Window:
    """A span of event time and the size of its tiles; `tile_ms` 0: all time, one tile."""

    name: str
    span_ms: int
    tile_ms: int


HOUR = Window("1h", HOUR_MS, 5 * MINUTE_MS)
DAY = Window("1d", DAY_MS, HOUR_MS)
WEEK = Window("7d", 7 * DAY_MS, HOUR_MS)
MONTH = Window("30d", 30 * DAY_MS, DAY_MS)
ALL = Window("all", 0, 0)
WINDOWS = (HOUR, DAY, WEEK, MONTH, ALL)
TILE_SIZES_MS = (0, 5 * MINUTE_MS, HOUR_MS, DAY_MS)  # a tile stores its size as the place here


@dataclass(frozen=True)
class Count:
    """Events of one kind per window: columns `{kind}_count_{window}`, int64."""

    kind: str
    windows: tuple[Window, ...] = WINDOWS

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,)

    def column(self, window: Window) -> str:
        return f"{self.kind}_count_{window.name}"


@dataclass(frozen=True)
class Sum:
    """An integer event column summed per window: `{source}_sum_{window}`, int64.

    `name` replaces the source in the columns, where one source is summed over several kinds.
    """

    source: str
    kinds: tuple[str, ...]
    windows: tuple[Window, ...]
    # Not stored in rows, so it is no part of the fingerprint.
    name: str = field(default="", repr=False)

    def column(self, window: Window) -> str:
        return f"{self.name or self.source}_sum_{window.name}"


Counter = Count | Sum


@dataclass(frozen=True)
class LastN:
    """The newest n values of one event column: a list of str, newest first, with repeats.

    Events of one millisecond are ordered by the hash of their id, so that the list does not
    depend on the order of arrival. `kind_column` and `time_column`, where given, hold each
    element's kind and event time (ms) in lists of the same length.
    """

    column: str
    source: str
    kinds: tuple[str, ...]
    n: int
    kind_column: str | None = None
    time_column: str | None = None


@dataclass(frozen=True)
class WindowTables:
    """Windows as arrays, by tile size: those of size s are `first[s]` to `first[s + 1]`."""

    first: np.ndarray  # int64 [sizes + 1]
    span_ms: np.ndarray  # int64 [windows]
    column: np.ndarray  # int64 [windows, counters]: place in `count_columns`, -1 for none


@dataclass(frozen=True)
class EntityDefinition:
    """One entity's row: the event column that identifies it, and what it keeps of its events.

    `recent`: how many event ids a row remembers (the newest by event time), so that an event
    republished to a recreated topic is not counted twice. `ttl_ms`: a row whose newest event is
    older reads as expired.
    """

    name: EntityName
    id_column: str
    counters: tuple[Counter, ...]
    lists: tuple[LastN, ...]
    ttl_ms: int
    recent: int

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

    @property
    def columns(self) -> tuple[str, ...]:
        return self.count_columns + self.text_list_columns + self.time_list_columns

    @cached_property
    def fingerprint(self) -> int:
        """32 bits that change whenever stored rows have to be rebuilt."""
        parts = [self.name, self.id_column, str(self.recent)]
        parts += [f"{c!r}" for c in (*self.counters, *self.lists)]
        return xxhash.xxh32_intdigest("|".join(parts).encode())

    @cached_property
    def windows(self) -> tuple[tuple[Window, tuple[tuple[int, str], ...]], ...]:
        """Each window in use, with (counter slot, column) of the counters that declare it."""
        found = (
            (
                window,
                tuple(
                    (slot, counter.column(window))
                    for slot, counter in enumerate(self.counters)
                    if window in counter.windows
                ),
            )
            for window in WINDOWS
        )
        return tuple((window, columns) for window, columns in found if columns)

    @cached_property
    def window_tables(self) -> WindowTables:
        by_size = sorted(self.windows, key=lambda each: TILE_SIZES_MS.index(each[0].tile_ms))
        sizes = [TILE_SIZES_MS.index(window.tile_ms) for window, _ in by_size]
        column = np.full((len(by_size), len(self.counters)), -1, np.int64)
        for row, (_, named) in enumerate(by_size):
            for slot, name in named:
                column[row, slot] = self.count_columns.index(name)
        first = np.searchsorted(sizes, np.arange(len(TILE_SIZES_MS) + 1)).astype(np.int64)
        return WindowTables(first, np.array([w.span_ms for w, _ in by_size], np.int64), column)


ENGAGED_KINDS = ("play", "long_view", "like", "share", "follow", "cart", "order")
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
        LastN("engaged_video_id", "video_id", ENGAGED_KINDS, 50, "engaged_kind", "engaged_time_ms"),
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

OwnFeatures = Mapping[EntityName, tuple["Counter | LastN", ...]]
_NO_FEATURES: OwnFeatures = MappingProxyType({})


class FeatureConflict(ValueError):
    """An owner's feature contradicts the others or the contract; the message says how."""


class _Definitions(Mapping[EntityName, EntityDefinition]):
    """The definitions in force: shipped, counts of declared signals, and the owner's features."""

    def __init__(self) -> None:
        self._own = _NO_FEATURES
        self._built: tuple[Signals, Mapping[EntityName, EntityDefinition]] | None = None

    def __getitem__(self, entity: EntityName) -> EntityDefinition:
        signals = contract().signals
        built = self._built
        if built is None or built[0] is not signals:
            built = self._built = signals, _extended(signals, self._own)
        return built[1][entity]

    def __iter__(self) -> Iterator[EntityName]:
        return iter(SHIPPED)

    def __len__(self) -> int:
        return len(SHIPPED)

    def add(self, own: OwnFeatures) -> None:
        """Replaces the owner's features, for this process.

        Raises:
            FeatureConflict: an entity, a kind, an event column or a name is wrong; the features
                before stay in force.
        """
        extended = _extended(contract().signals, own)
        self._own, self._built = own, (contract().signals, extended)


def _extended(signals: Signals, own: OwnFeatures) -> Mapping[EntityName, EntityDefinition]:
    if unknown := sorted({*own} - {*SHIPPED}):
        raise FeatureConflict(f"{unknown[0]!r} is none of the entities {', '.join(SHIPPED)}")
    return {
        entity: _with_features(definition, signals, tuple(own.get(entity, ())))
        for entity, definition in SHIPPED.items()
    }


def _with_features(
    definition: EntityDefinition, signals: Signals, own: tuple[Counter | LastN, ...]
) -> EntityDefinition:
    counted = [each.name for each in signals.declared if each != PROFILE]
    counts = [Count(name) for name in counted if definition.name in COUNTED]
    lists = [ATTRIBUTES] if signals.user_attributes and definition.name == "user" else []
    if not counts and not lists and not own:
        return definition
    for feature in own:
        _refuse_conflict(definition.name, feature, signals)
    extended = replace(
        definition,
        counters=(*definition.counters, *counts, *(f for f in own if not isinstance(f, LastN))),
        lists=(*definition.lists, *lists, *(f for f in own if isinstance(f, LastN))),
    )
    for name in extended.columns:
        if extended.columns.count(name) > 1:
            raise FeatureConflict(f"{definition.name}: {name!r} is declared twice")
    return extended


def _refuse_conflict(entity: EntityName, feature: Counter | LastN, signals: Signals) -> None:
    for kind in feature.kinds:
        if kind not in signals.number:
            raise FeatureConflict(f"{entity}: {kind!r} is no signal ({', '.join(signals.kinds)})")
    names = [feature.column] if isinstance(feature, LastN) else []
    for name in names:
        if problem := declared_name_problem(name, frozenset()):
            raise FeatureConflict(f"{entity}: {name!r} cannot be a column: {problem}")
    if isinstance(feature, Count):
        return
    wanted = pa.types.is_string if isinstance(feature, LastN) else pa.types.is_integer
    fitting = [column.name for column in event_schema() if wanted(column.type)]
    if feature.source not in fitting:
        raise FeatureConflict(
            f"{entity}: {feature.source!r} is no event column for this; {', '.join(fitting)} are"
        )


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
