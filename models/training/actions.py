"""What declared signals say about an item, by role: what opens it, what is liked, what is not.

Knows a training log and the contract in force. Does not know models. Without a declaration nothing
here finds anything.

A signal with a `value`, such as a rating, says more by its value than by its presence: it is compared
with what the user usually states.
"""

from __future__ import annotations

import polars as pl

from models.recipe import TrainingLog
from streams.contract.declaration import contract
from streams.contract.signals import Signal

PLAY = "play"
USUAL = 0.5  # liking of the user's usual value
_PRIOR_VALUES = 2.0  # of the mean of all users in a user's usual value
_OPENING_SHARE = 0.5  # of the items that were met without a play
_MIN_SHARE = 0.1  # of all that were met; fewer without a play are noise
_POSITIVE = ("engagement", "conversion")


def positive_signals() -> tuple[Signal, ...]:
    """Declared signals of engagement and conversion, by number."""
    found = [signal for signal in contract().signals.declared if signal.role in _POSITIVE]
    return tuple(sorted(found, key=lambda signal: signal.number))


def disliking_signals() -> tuple[str, ...]:
    """Names of declared signals of dislike."""
    return tuple(s.name for s in contract().signals.declared if s.role == "dislike")


def valued_signals() -> tuple[str, ...]:
    """Names of declared signals of engagement and conversion that state a value."""
    return tuple(s.name for s in positive_signals() if "value" in s.payload)


def opening_signals(log: TrainingLog) -> tuple[str, ...]:
    """Declared engagements that open items as a play does, most frequent first.

    Such as the view of a product: it is on more than half of the items that users met without a
    play, so it says as little about liking as a play does.
    """
    offered = [
        signal.name
        for signal in positive_signals()
        if signal.role == "engagement" and "value" not in signal.payload
    ]
    if not offered:
        return ()
    kinds = contract().signals.engaged
    pairs = (
        log.events.lazy()
        .filter(pl.col("kind").is_in(kinds) & pl.col("video_id").is_not_null())
        .group_by("user_id", "video_id")
        .agg(*((pl.col("kind") == name).any().alias(name) for name in (PLAY, *offered)))
        .collect()
    )
    unplayed = pairs.filter(~pl.col(PLAY))
    if unplayed.height < max(1.0, _MIN_SHARE * pairs.height):
        return ()
    share = {name: float(unplayed[name].sum()) / unplayed.height for name in offered}
    opening = [name for name in offered if share[name] > _OPENING_SHARE]
    return tuple(sorted(opening, key=lambda name: -share[name]))


def opening(log: TrainingLog) -> str:
    """What opens items: the play, or a declared signal where the log holds no play."""
    if not positive_signals() or (log.events["kind"] == PLAY).any():
        return PLAY
    found = opening_signals(log)
    return found[0] if found else PLAY


def with_value_liking(events: pl.DataFrame) -> pl.DataFrame:
    """The events with `value_liking`: float64 in [0, 1], null for kinds without a value.

    `USUAL` at the user's usual value, 1 at two standard deviations above it.
    """
    kinds = valued_signals()
    if not kinds or "value" not in events.columns:
        return events.with_columns(value_liking=pl.lit(None, pl.Float64))
    value = pl.when(pl.col("kind").is_in(kinds)).then(pl.col("value"))
    own = ["user_id", "kind"]
    usual = (value.sum().over(own) + _PRIOR_VALUES * value.mean().over("kind")) / (
        value.count().over(own) + _PRIOR_VALUES
    )
    beyond = events.with_columns(beyond=value - usual)
    spread = pl.max_horizontal(pl.col("beyond").std().over("kind").fill_null(0.0), 1e-9)
    liking = (USUAL + pl.col("beyond") / (4 * spread)).clip(0, 1)
    return beyond.with_columns(value_liking=liking).drop("beyond")


def done(kind: str, *, valued: bool) -> pl.Expr:
    """Whether an event of `with_value_liking` is the action `kind`."""
    happened = pl.col("kind") == kind
    return happened & (pl.col("value_liking") >= USUAL).fill_null(True) if valued else happened


def last_values(log: TrainingLog) -> pl.DataFrame:
    """user_id, video_id, kind, value_liking: what each user last stated of each item."""
    valued = with_value_liking(log.events.filter(pl.col("kind").is_in(valued_signals())))
    return (
        valued.filter(pl.col("value_liking").is_not_null())
        .group_by("user_id", "video_id", "kind")
        .agg(pl.col("value_liking").sort_by("event_time_ms").last())
    )
