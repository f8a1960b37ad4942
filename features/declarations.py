"""What a feature can be: counts, sums and last-n lists, and values derived from those.

Knows names, windows and parameters. Does not know entities (`features.definitions`), which
declarations are accepted (`features.own_features`), nor how a value is folded
(`features.rows.aggregate`) or derived (`features.rows.derived`).

Counts, sums and lists are stored in rows, so a change of one is a rebuild. `Ratio`, `Decayed`,
`Distinct` and `CountBy` are computed from their values whenever a row is read: they store
nothing, and a change of one is a restart.

A window is a sawtooth over tiles (Chronon's rule): at `now` it counts the tiles from the one
that holds `now - window` to the one that holds `now`, so it is never shorter than declared and
at most one tile longer. An event ahead of the reader's clock counts once its tile has started
(in `all` at once) and is listed once its time has come. Tiles are 5 minutes for the hour's
window, 1 hour for windows of up to a week, 1 day above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS

ColumnType = Literal["integer", "number", "texts", "integers"]
"""int64; float64, where NaN is null; a list of str; a list of int."""


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

    @property
    def stem(self) -> str:
        """The columns' name without the window: what derived features refer to."""
        return f"{self.kind}_count"

    def column(self, window: Window) -> str:
        return f"{self.stem}_{window.name}"


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

    @property
    def stem(self) -> str:
        """The columns' name without the window: what derived features refer to."""
        return f"{self.name or self.source}_sum"

    def column(self, window: Window) -> str:
        return f"{self.stem}_{window.name}"


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
class Ratio:
    """One count or sum divided by another of the same window: `{name}_{window}`, float64.

    `numerator` and `denominator` are columns without their window, such as "like_count" or
    "dwell_ms_sum". The value is null (NaN in a frame) where the denominator is 0.
    """

    name: str
    numerator: str
    denominator: str
    windows: tuple[Window, ...]

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return dict.fromkeys(map(self.column, self.windows), "number")

    def column(self, window: Window) -> str:
        return f"{self.name}_{window.name}"


DECAY_STEPS = 32  # at most, per window: a reader sums each of them for every tile


@dataclass(frozen=True)
class Decayed:
    """A count or sum whose events weigh 2^(-age / half_life): column `name`, float64.

    `of` is a column without its window, such as "play_count". The window is split into steps of
    whole tiles: 12 of 5 minutes (1h), 24 of 1 hour (1d), 28 of 6 hours (7d) or 30 of 1 day (30d),
    and the newest tile by itself. All events of a step have the age of the step's middle, so a
    half-life of at least two steps is within a fifth of exact ages. Events before the window
    count 0.
    """

    name: str
    of: str
    window: Window
    half_life_ms: int

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return {self.name: "number"}

    @property
    def step_ms(self) -> int:
        tiles = self.window.span_ms // self.window.tile_ms
        return self.window.tile_ms * -(-tiles // DECAY_STEPS)

    @cached_property
    def steps(self) -> tuple[tuple[str, Window], ...]:
        """(column, window) of the counts that it is computed from, the shortest window first.

        The last is the declared window. The others are counted when a row is read and not shown;
        their names cannot be declared.
        """
        span, tile = self.window.span_ms, self.window.tile_ms
        shorter = tuple(
            (f"{self.of}_{self.window.name}<{back}", Window(f"<{back}", back, tile))
            for back in range(0, span, self.step_ms)
        )
        return (*shorter, (f"{self.of}_{self.window.name}", self.window))


@dataclass(frozen=True)
class Distinct:
    """How many different values a last-n list holds: column `name`, int64, at most its n.

    `of` is a list's column. `kinds` counts events of these kinds alone, and `within_ms` those of
    the last `within_ms` milliseconds; the list must declare a `kind_column` or `time_column` for
    them. Values that the list has dropped are not counted.
    """

    name: str
    of: str
    kinds: tuple[str, ...] = ()
    within_ms: int | None = None

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return {self.name: "integer"}


@dataclass(frozen=True)
class CountBy:
    """The most frequent values of a last-n list, such as a user's plays per author.

    Columns `name`, a list of up to `top` values, and `{name}_count`, a list of how often each
    occurs, most frequent first. Of equally frequent ones the one that was seen last comes first.
    The other fields are `Distinct`'s. The counts cover the list's newest n events, not all time:
    which values are the most frequent of all time cannot be folded in bounded memory so that
    every order of arrival gives the same answer.
    """

    name: str
    of: str
    top: int
    kinds: tuple[str, ...] = ()
    within_ms: int | None = None

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return {self.name: "texts", self.count_column: "integers"}

    @property
    def count_column(self) -> str:
        return f"{self.name}_count"


@dataclass(frozen=True)
class Key:
    """Makes the features beside it those of an entity of the owner's: one row for each value.

    column: the event column that identifies the entity, one of `KEY_COLUMNS`. Only events of the
    kinds that the entity's features count have a row.
    """

    column: str


KEY_COLUMNS = ("text", "surface")
"""Columns of text that identify no shipped entity. `text` is stated by signals with that payload."""

Derived = Ratio | Decayed | Distinct | CountBy
Feature = Counter | LastN | Derived | Key
