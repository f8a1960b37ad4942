"""Ratios, decayed counts, distinct values and counts by value: the same wherever they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.definitions import (
    ALL,
    DAY,
    DEFINITIONS,
    HOUR,
    MONTH,
    SHIPPED,
    WEEK,
    Count,
    CountBy,
    Decayed,
    Distinct,
    FeatureConflict,
    LastN,
    Ratio,
    Sum,
)
from features.memory_store import MemoryFeatureStore
from features.offline.point_in_time.join import features_as_of, join_features
from features.offline.point_in_time.replay import replay_features
from features.store import FeatureFrame
from streams.bus.contract import Stamp
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS

T0 = 1_700_000_000_000
NOW = T0 + 40 * DAY_MS
HALF_LIFE_MS = 3 * DAY_MS
KINDS = ("play", "like", "shown")
OWN = {
    "user": (
        LastN("met_author", "author_id", ("play", "like"), 6, "met_kind", "met_time_ms"),
        Ratio("like_rate", "like_count", "play_count", (HOUR, WEEK, ALL)),
        Ratio("dwell_per_play", "dwell_ms_sum", "play_count", (DAY,)),
        Decayed("recent_hour", "play_count", HOUR, 10 * MINUTE_MS),
        Decayed("recent_week", "play_count", WEEK, DAY_MS),
        Decayed("recent_month", "play_count", MONTH, HALF_LIFE_MS),
        Decayed("recent_dwell", "dwell_ms_sum", DAY, HOUR_MS),
        Distinct("authors", "met_author"),
        Distinct("authors_liked", "met_author", ("like",)),
        Distinct("authors_today", "met_author", within_ms=DAY_MS),
        CountBy("top_author", "met_author", 2),
        CountBy("top_liked", "met_author", 9, ("like",), 20 * DAY_MS),
    ),
    "video": (Ratio("like_rate", "like_count", "shown_count", (MONTH,)),),
}
DERIVED = [name for feature in OWN["user"][1:] for name in feature.columns]


@pytest.fixture(autouse=True, scope="module")
def _declared() -> Iterator[None]:
    DEFINITIONS.add(OWN)
    yield
    DEFINITIONS.add({})


moments = st.one_of(
    st.integers(T0, NOW),
    st.integers(NOW - DAY_MS, NOW),
    st.sampled_from([NOW - 7 * DAY_MS, NOW - 30 * DAY_MS, NOW - HOUR_MS, NOW, NOW - 1]),
)
events = st.lists(
    st.fixed_dictionaries(
        {
            "event_time_ms": moments,
            "delay": st.one_of(st.just(0), st.integers(0, 3 * DAY_MS)),
            "kind": st.sampled_from(KINDS),
            "user_id": st.sampled_from(["ann", "bob"]),
            "author_id": st.sampled_from(["a", "b", "c", None]),
            "dwell_ms": st.integers(0, 90_000),
        }
    ),
    max_size=40,
)


def _stated(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in event.items() if k != "delay"}
        | {"video_id": "v", "ingested_at_ms": event["event_time_ms"] + event["delay"]}
        for event in drawn
    ]


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    return bool(left == right)


def _assert_equal(left: FeatureFrame, right: FeatureFrame) -> None:
    assert list(left.columns) == list(right.columns) == list(DEFINITIONS[left.entity].columns)
    for name, values in left.columns.items():
        assert values.dtype == right.columns[name].dtype, name
        pairs = zip(values.tolist(), right.columns[name].tolist(), strict=True)
        assert all(_same(a, b) for a, b in pairs), (name, values, right.columns[name])


@given(drawn=events, cut=st.integers(0, 40), now=moments, order=st.randoms())
@settings(max_examples=25, deadline=None)
def test_live_rows_the_join_and_folding_again_give_equal_values(
    event_table, drawn, cut, now, order
) -> None:
    stated = [event for event in _stated(drawn) if event["ingested_at_ms"] < now]
    table, ids = event_table(stated), ["ann", "bob", "unseen"]
    whole, parts = MemoryFeatureStore(), MemoryFeatureStore()
    whole.fold("user", table, Stamp("t", 0, 0))
    # Split elsewhere, in another order, and the first part delivered twice.
    shuffled = table.take(np.array(order.sample(range(len(stated)), len(stated)), np.int64))
    first, rest = shuffled.slice(0, cut), shuffled.slice(min(cut, len(stated)))
    for offset, part in enumerate([rest, first, rest]):
        parts.fold("user", part, Stamp("t", 0, offset))
    live = whole.read("user", ids, now)
    _assert_equal(live, parts.read("user", ids, now))

    frame = pl.DataFrame(table)
    labels = pl.DataFrame({"user_id": ids, "time_ms": [now] * 3})
    _assert_equal(live, features_as_of(frame, labels, "user"))
    again = replay_features(DEFINITIONS["user"], frame, ids, np.array([now] * 3))
    _assert_equal(live, again)
    joined = join_features(frame, labels, "user")
    for name, values in live.columns.items():
        wanted = [None if _same(v, math.nan) else v for v in values.tolist()]
        assert joined[name].to_list() == wanted, name


@given(drawn=events, times=st.lists(moments, min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_labels_before_arrivals_see_what_a_reader_saw(event_table, drawn, times) -> None:
    frame = pl.DataFrame(event_table(_stated(drawn)))
    ids = [("ann", "bob")[place % 2] for place in range(len(times))]
    labels = pl.DataFrame({"user_id": ids, "time_ms": times})
    again = replay_features(DEFINITIONS["user"], frame, ids, np.array(times))
    _assert_equal(features_as_of(frame, labels, "user"), again)


def _read(event_table, *events: Mapping[str, Any]) -> dict[str, Any]:
    store = MemoryFeatureStore()
    stated = [{"user_id": "ann", "video_id": "v", **event} for event in events]
    store.fold("user", event_table(stated), Stamp("t", 0, 0))
    columns = store.read("user", ["ann"], NOW).columns
    return {name: columns[name].tolist()[0] for name in DERIVED}


def test_a_ratio_is_null_where_nothing_was_counted(event_table) -> None:
    played = {"kind": "play", "event_time_ms": NOW - 2 * DAY_MS}
    got = _read(event_table, played, played, {"kind": "like", "event_time_ms": NOW - 1})
    assert math.isnan(got["like_rate_1h"])
    assert math.isnan(got["dwell_per_play_1d"])
    assert got["like_rate_7d"] == got["like_rate_all"] == 0.5


@pytest.mark.parametrize(
    ("name", "half_life_ms", "step_ms"),
    [
        ("recent_hour", 10 * MINUTE_MS, 5 * MINUTE_MS),
        ("recent_week", DAY_MS, 6 * HOUR_MS),
        ("recent_month", HALF_LIFE_MS, DAY_MS),
    ],
)
def test_a_decayed_count_halves_with_each_half_life(
    event_table, name, half_life_ms, step_ms
) -> None:
    one = _read(event_table, {"kind": "play", "event_time_ms": NOW - half_life_ms})[name]
    assert one == pytest.approx(0.5, rel=2 ** (step_ms / 2 / half_life_ms) - 1)
    two = _read(event_table, {"kind": "play", "event_time_ms": NOW - 2 * half_life_ms})[name]
    assert two == pytest.approx(one / 2)
    both = [{"kind": "play", "event_time_ms": NOW - n * half_life_ms} for n in (1, 2)]
    assert _read(event_table, *both)[name] == pytest.approx(one + two)
    before = {"kind": "play", "event_time_ms": NOW - 32 * DAY_MS}
    assert _read(event_table, before)[name] == 0


def test_counts_by_value_put_the_most_frequent_first_and_then_the_last_seen(event_table) -> None:
    met = ["dropped", "a", "b", "b", "a", "c", "d"]  # oldest first; the list keeps six
    kinds = ["like", "play", "play", "play", "play", "like", "like"]
    got = _read(
        event_table,
        *(
            {"kind": kind, "author_id": author, "event_time_ms": NOW - (20 - place) * DAY_MS}
            for place, (author, kind) in enumerate(zip(met, kinds, strict=True))
        ),
    )
    assert (got["top_author"], got["top_author_count"]) == (["a", "b"], [2, 2])
    assert (got["top_liked"], got["top_liked_count"]) == (["d", "c"], [1, 1])
    assert (got["authors"], got["authors_liked"], got["authors_today"]) == (4, 2, 0)


def test_derived_features_store_nothing() -> None:
    stored = [feature for feature in OWN["user"] if isinstance(feature, LastN)]
    with_derived = DEFINITIONS["user"]
    try:
        DEFINITIONS.add({"user": tuple(stored)})
        assert DEFINITIONS["user"].fingerprint == with_derived.fingerprint
    finally:
        DEFINITIONS.add(OWN)
    assert DEFINITIONS["video"].fingerprint == SHIPPED["video"].fingerprint
    assert not any("<" in name for name in with_derived.columns)


@pytest.mark.parametrize(
    ("feature", "named"),
    [
        (Ratio("r", "likes", "play_count", (DAY,)), "'r' refers to 'likes'.*like_count"),
        (Ratio("r", "dwell_ms_sum", "play_count", (MONTH,)), "'r' has the window 30d, and 'dwell"),
        (Ratio("r", "like_count", "play_count", ()), "'r' has no windows"),
        (Ratio("select", "like_count", "play_count", (DAY,)), "'select'.*SQL"),
        (Decayed("d", "play_count", ALL, 1), "'d' has a window that does not fit.*1h, 1d, 7d, 30d"),
        (Decayed("d", "play_count", DAY, 0), "'d' has half_life_ms = 0"),
        (Decayed("d", "engaged_video_id", DAY, 9), "'d' refers to 'engaged_video_id'"),
        (Distinct("k", "play_count"), "'k' refers to 'play_count', which is no list.*engaged"),
        (Distinct("k", "shown_video_id", ("shown",)), "'k' has kinds, and 'shown_video_id' has no"),
        (Distinct("k", "engaged_video_id", ("shown",)), "'k' has the kind 'shown'"),
        (Distinct("k", "engaged_video_id", ("liek",)), "'liek' is no signal"),
        (Distinct("k", "clicked_query", within_ms=5), "'k' has within_ms, and 'clicked_query' has"),
        (Distinct("k", "engaged_video_id", within_ms=0), "'k' has within_ms = 0"),
        (CountBy("t", "engaged_video_id", 0), "'t' has top = 0"),
        (Distinct("engaged_kind", "engaged_video_id"), "'engaged_kind' is declared twice"),
        (LastN("l", "query", ("search",), 0), "'l' keeps n = 0"),
        (Sum("dwell_ms", ("play",), (DAY,)), "'dwell_ms_sum_1d' is declared twice"),
    ],
)
def test_a_wrong_declaration_is_named_and_changes_nothing(feature, named) -> None:
    before = DEFINITIONS["user"]
    with pytest.raises(FeatureConflict, match=f"^user: .*({named})"):
        DEFINITIONS.add({"user": (feature,)})
    assert DEFINITIONS["user"] is before


def test_a_window_of_its_own_is_refused() -> None:
    from features.declarations import Window

    with pytest.raises(FeatureConflict, match=r"'2d'.*none of the windows 1h, 1d"):
        DEFINITIONS.add({"query": (Count("play", (Window("2d", 2 * DAY_MS, HOUR_MS),)),)})
