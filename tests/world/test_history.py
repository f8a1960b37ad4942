"""The replayed history: its order, its agreement with the ratings, one constant shift."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from deploy.simulation import queries
from deploy.simulation.config import WorldConfig
from deploy.simulation.history import DEFAULT_END_MS, FRAME_SCHEMA, History, history
from deploy.simulation.movielens import LAST_RATING_MS, MovieLens, drawn_share
from deploy.simulation.people import People
from streams.contract.events import EVENT, KINDS
from streams.contract.schema import EVENT_SCHEMA


def test_the_data_is_movielens_whole(data: MovieLens) -> None:
    assert len(data.films) == 1682
    assert len(data.ratings) == 100_000
    assert data.ratings["user_id"].n_unique() == 943
    assert data.ratings["time_ms"].max() == LAST_RATING_MS


def test_every_event_fits_the_contract(past: History) -> None:
    for event in past.events(start=len(past.frame) - 20_000):
        EVENT.validate_python(event)


def test_the_frame_has_the_logs_columns(past: History) -> None:
    assert list(FRAME_SCHEMA) == EVENT_SCHEMA.names
    assert past.frame.schema == pl.Schema(FRAME_SCHEMA)
    assert set(past.frame["kind"].unique()) <= set(KINDS)


def test_events_come_in_event_time_order(past: History) -> None:
    assert past.frame["event_time_ms"].is_sorted()
    assert past.frame["event_id"].is_unique().all()


def test_one_constant_shifts_every_rating(past: History, replayed: MovieLens) -> None:
    plays = past.frame.filter(kind="play").sort("user_id", "video_id")
    ratings = replayed.ratings.sort("user_id", "video_id")
    off = plays["event_time_ms"] - ratings["time_ms"] - past.shift_ms
    assert off.min() == 0
    assert 0 <= int(off.max()) < 1000  # type: ignore[arg-type]
    assert plays["event_time_ms"].max() // 1000 == DEFAULT_END_MS // 1000  # type: ignore[operator]


def test_the_replay_keeps_each_users_order(past: History, replayed: MovieLens) -> None:
    played = past.frame.filter(kind="play").group_by("user_id").agg("video_id").sort("user_id")
    rated = (
        replayed.ratings.group_by("user_id", maintain_order=True).agg("video_id").sort("user_id")
    )
    assert played.equals(rated)


@pytest.mark.parametrize(("kind", "stars"), [("play", 1), ("long_view", 3), ("like", 4)])
def test_each_kind_counts_the_ratings_it_stands_for(
    past: History, replayed: MovieLens, kind: str, stars: int
) -> None:
    assert past.frame.filter(kind=kind).height == int((replayed.ratings["rating"] >= stars).sum())


def test_the_stated_share_of_each_user_is_replayed(
    replayed: MovieLens, data: MovieLens, world: WorldConfig
) -> None:
    counts = (
        data.ratings.group_by("user_id")
        .len()
        .join(replayed.ratings.group_by("user_id").len("kept"), on="user_id")
    )
    assert counts.height == 943
    assert (counts["kept"] == (counts["len"] * world.replay.share).ceil()).all()
    ends = pl.col("time_ms").max()
    assert (data.ratings.group_by("user_id").agg(ends).sort("user_id")).equals(
        replayed.ratings.group_by("user_id").agg(ends).sort("user_id")
    )


def test_a_share_of_one_replays_every_rating(data: MovieLens, replayed: MovieLens) -> None:
    assert drawn_share(data, 1.0, 0) is data
    assert replayed.ratings.equals(drawn_share(data, 0.5, 0).ratings)
    assert not replayed.ratings.equals(drawn_share(data, 0.5, 1).ratings)


def test_follows_and_orders_come_only_from_liked_films(past: History) -> None:
    liked = past.frame.filter(kind="like").select("user_id", "video_id")
    for kind in ("follow", "order"):
        acted = past.frame.filter(kind=kind).select("user_id", "video_id")
        assert 500 < len(acted) < 10_000
        assert acted.join(liked, on=["user_id", "video_id"], how="anti").is_empty()


def test_a_user_follows_a_studio_once(past: History) -> None:
    follows = past.frame.filter(kind="follow").select("user_id", "author_id")
    assert follows.is_unique().all()


def test_queries_are_labelled_simulated_and_ratings_replayed(past: History) -> None:
    asked = pl.col("kind").is_in(["query_click", "search"])
    assert set(past.frame.filter(asked)["origin"]) == {"simulated"}
    assert set(past.frame.filter(~asked)["origin"]) == {"replayed"}


def test_the_same_seed_gives_the_same_history(past: History, data: MovieLens) -> None:
    assert history(0, data=data).frame.equals(past.frame)
    assert not history(1, data=data).frame.equals(past.frame)


def test_every_clicked_query_is_legal_under_its_film(past: History, data: MovieLens) -> None:
    kinds = WorldConfig.load().queries.kinds
    legal = {film.video_id: set(queries.legal(film, kinds)) for film in data.films}
    clicks = past.frame.filter(kind="query_click").select("video_id", "query")
    assert all(query in legal[video_id] for video_id, query in clicks.iter_rows())


def test_asked_queries_follow_the_stated_odds(crowd: People, data: MovieLens) -> None:
    rules, film, speaker = WorldConfig.load().queries, data.films[0], crowd.speakers[0]
    odds = queries.wanted(speaker, film, rules)
    rng = np.random.default_rng(0)
    drawn = [queries.ask(speaker, film, rules, rng) for _ in range(4000)]
    assert sum(odds.values()) == pytest.approx(1.0)
    for query, p in odds.items():
        assert drawn.count(query) / 4000 == pytest.approx(p, abs=0.04)


def test_the_catalogue_states_author_duration_and_price(past: History) -> None:
    assert len({item.video_id for item in past.items}) == 1682
    for item in past.items:
        assert item.author_id is not None
        assert 20_000 <= item.duration_ms <= 180_000
        assert item.price_cents >= 199
