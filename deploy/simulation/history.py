"""Ratings as behaviour: the replayed history, shifted to the stack's time by one constant.

Knows what a rating is taken to mean (`config.toml`, section history) and the
event contract. Does not know the broker (`deploy.simulation.replay`).

A rating becomes a play (origin `replayed`); >= 3 stars also a long view, >= 4 a
like, 5 sometimes a follow or an order. MovieLens has no queries: query clicks and
searches beside the plays are made by `deploy.simulation.queries` (origin `simulated`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from deploy.simulation import queries
from deploy.simulation.config import HistoryConfig, WorldConfig
from deploy.simulation.movielens import Film, MovieLens, catalogue, load, shift_ms
from deploy.simulation.people import People, people
from streams.contract.events import CatalogueItem

DEFAULT_END_MS = 1_767_225_600_000
"""2026-01-01T00:00Z: where tests and offline runs let the history end."""

FRAME_SCHEMA: dict[str, pl.DataType] = {
    "event_id": pl.String(),
    "user_id": pl.String(),
    "kind": pl.String(),
    "event_time_ms": pl.Int64(),
    "ingested_at_ms": pl.Int64(),
    "surface": pl.String(),
    "origin": pl.String(),
    "request_id": pl.String(),
    "impression": pl.String(),
    "video_id": pl.String(),
    "author_id": pl.String(),
    "provenance": pl.String(),
    "query": pl.String(),
    "dwell_ms": pl.Int32(),
    "amount_cents": pl.Int64(),
    "late": pl.Boolean(),
    "duplicate": pl.Boolean(),
    "source_partition": pl.Int32(),
    "source_offset": pl.Int64(),
}
"""EVENT_SCHEMA's columns with `kind` as a string: `models.recipe.TrainingLog.events`."""

_ADMITTED_ONLY = ("ingested_at_ms", "late", "duplicate", "source_partition", "source_offset")


@dataclass(frozen=True)
class History:
    """items: the catalogue. frame: FRAME_SCHEMA, ordered by (event_time_ms, event_id)."""

    items: list[CatalogueItem]
    frame: pl.DataFrame
    shift_ms: int

    def events(self, start: int = 0) -> Iterator[dict[str, object]]:
        """The events of the contract as JSON objects, in order, from row `start` on."""
        wire = self.frame.drop(_ADMITTED_ONLY)
        for row in wire.slice(start).iter_rows(named=True):
            yield {name: value for name, value in row.items() if value is not None}

    @cached_property
    def items_frame(self) -> pl.DataFrame:
        """The catalogue as `models.recipe.TrainingLog.items`."""
        rows = [item.model_dump() | {"genres": list(item.genres)} for item in self.items]
        return pl.DataFrame(rows).with_columns(available=pl.lit(True))


def history(
    seed: int = 0,
    *,
    end_ms: int = DEFAULT_END_MS,
    world: WorldConfig | None = None,
    data: MovieLens | None = None,
    crowd: People | None = None,
) -> History:
    """The whole history, its last rating at `end_ms` (within a second).

    Raises:
        deploy.simulation.movielens.DataUnavailable: the data's wheel cannot be had.
    """
    world = world or WorldConfig.load()
    data = data or load()
    crowd = crowd or people(data, world, seed)
    items = catalogue(data, world, end_ms)
    plays = _plays(data, items, crowd, world.history, seed, shift_ms(end_ms))
    parts = [*_rated(plays, world.history), *_asked(plays, data, crowd, world, seed)]
    frame = pl.concat(parts).sort("event_time_ms", "event_id")
    return History(items, frame, shift_ms(end_ms))


def _plays(
    data: MovieLens,
    items: list[CatalogueItem],
    crowd: People,
    rules: HistoryConfig,
    seed: int,
    shift: int,
) -> pl.DataFrame:
    """One row a rating: its place in time, its film's facts and its dwell.

    Ratings of one user within one second are spread over it in order, with room
    (`step_ms`) for a rating's own actions before the next rating.
    """
    rng = np.random.default_rng([seed, 2])
    rank = pl.col("video_id").cum_count().over("user_id", "time_ms") - 1
    size = pl.len().over("user_id", "time_ms")
    share = np.array(rules.watched_share)[data.ratings["rating"].to_numpy() - 1]
    noise = rng.uniform(-rules.watched_noise, rules.watched_noise, len(share))
    watched = pl.Series(np.clip(share + noise, 0.02, 1.0))
    return (
        data.ratings.with_columns(
            at_ms=pl.col("time_ms") + shift + (rank * 1000 // size).cast(pl.Int64),
            step_ms=pl.min_horizontal(1000 // size // 8, pl.lit(100)).cast(pl.Int64),
        )
        .join(_facts(items), on="video_id", how="left", maintain_order="left")
        .join(_traits(crowd), on="user_id", how="left", maintain_order="left")
        .with_columns(
            dwell_ms=(watched * pl.col("duration_ms")).cast(pl.Int32),
            follow_draw=pl.Series(rng.random(len(share))),
            order_draw=pl.Series(rng.random(len(share))),
        )
    )


def _facts(items: list[CatalogueItem]) -> pl.DataFrame:
    return pl.DataFrame(
        [(i.video_id, i.author_id, i.duration_ms, i.price_cents) for i in items],
        schema=["video_id", "author_id", "duration_ms", "price_cents"],
        orient="row",
    )


def _traits(crowd: People) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": crowd.user_ids,
            "row": np.arange(len(crowd.user_ids)),
            "follow": crowd.follow,
            "order": crowd.order,
            "curiosity": crowd.curiosity,
        }
    )


def _rated(plays: pl.DataFrame, rules: HistoryConfig) -> list[pl.DataFrame]:
    """Plays, long views, likes, follows and orders, one frame a kind."""
    stars = pl.col("rating")
    order_p = (
        pl.when(stars == 5).then(rules.order_rate).when(stars == 4).then(rules.order_rate_four)
    )
    fans = plays.filter(
        (stars == 5) & (pl.col("follow_draw") < rules.follow_rate * pl.col("follow"))
    ).unique(["user_id", "author_id"], keep="first", maintain_order=True)
    buyers = plays.filter(pl.col("order_draw") < order_p.otherwise(0.0) * pl.col("order"))
    return [
        _rows(plays, "play", 0, dwell_ms=pl.col("dwell_ms")),
        _rows(
            plays.filter(stars >= rules.long_view_from), "long_view", 1, dwell_ms=pl.col("dwell_ms")
        ),
        _rows(plays.filter(stars >= rules.like_from), "like", 2),
        _rows(fans, "follow", 3),
        _rows(buyers, "order", 4, amount_cents=pl.col("price_cents")),
    ]


def _asked(
    plays: pl.DataFrame, data: MovieLens, crowd: People, world: WorldConfig, seed: int
) -> list[pl.DataFrame]:
    """Query clicks under videos that held the user, and searches shortly before a play."""
    rng = np.random.default_rng([seed, 3])
    films = {film.video_id: film for film in data.films}
    curious = pl.col("curiosity")
    rules = world.history
    plays = plays.with_columns(ask_draw=pl.Series(rng.random(len(plays))))
    clicks = plays.filter(
        (pl.col("rating") >= rules.long_view_from)
        & (pl.col("ask_draw") < rules.query_click_rate * curious)
    )
    searches = plays.filter(pl.col("ask_draw") > 1 - rules.search_rate * curious)

    def worded(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(query=pl.Series(_words(rows, films, crowd, world, rng)))

    wanted, typed = worded(clicks), worded(searches)
    return [
        _rows(wanted, "query_click", 5, origin="simulated", query=pl.col("query")),
        _rows(typed, "search", -1, origin="simulated", query=pl.col("query")),
    ]


def _words(
    rows: pl.DataFrame,
    films: dict[str, Film],
    crowd: People,
    world: WorldConfig,
    rng: np.random.Generator,
) -> list[str]:
    pairs = zip(rows["row"], rows["video_id"], strict=True)
    return [
        queries.ask(crowd.speakers[user], films[video_id], world.queries, rng)
        for user, video_id in pairs
    ]


def _rows(
    plays: pl.DataFrame, kind: str, step: int, *, origin: str = "replayed", **extra: pl.Expr
) -> pl.DataFrame:
    """Events of one kind, `step` places after their play, in FRAME_SCHEMA's columns."""
    film = ("video_id", "author_id")
    about: dict[str, pl.Expr] = {} if kind == "search" else {name: pl.col(name) for name in film}
    at_ms = pl.col("at_ms") + step * pl.col("step_ms")
    known = plays.select(
        event_id=pl.format("ml:{}:{}:{}", "user_id", "video_id", pl.lit(kind)),
        user_id="user_id",
        kind=pl.lit(kind),
        event_time_ms=at_ms,
        ingested_at_ms=at_ms,
        surface=pl.lit("search" if kind == "search" else "external"),
        origin=pl.lit(origin),
        provenance=pl.lit(None if kind == "search" else "human", dtype=pl.String),
        late=pl.lit(False),
        duplicate=pl.lit(False),
        source_partition=pl.lit(0),
        source_offset=pl.lit(0),
        **about,
        **extra,
    )
    absent = [pl.lit(None).alias(name) for name in FRAME_SCHEMA if name not in known.columns]
    return known.with_columns(absent).select(
        pl.col(name).cast(dtype) for name, dtype in FRAME_SCHEMA.items()
    )
