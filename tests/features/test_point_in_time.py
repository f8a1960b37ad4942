"""A point-in-time read returns what the online reader would have returned at that moment."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.definitions import DEFINITIONS
from features.memory_store import MemoryFeatureStore
from features.offline.point_in_time.join import features_as_of
from features.offline.point_in_time.replay import replay_features
from features.store import Status
from streams.bus.contract import Stamp
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS

T0 = 1_700_000_000_000
KINDS = ["shown", "play", "like", "skip", "order", "query_click", "search", "query_shown"]
IDS = ["1", "2", "3"]

# Delays: none, within the hour, days; and a clock that runs ahead.
delays = st.one_of(
    st.integers(0, 1000), st.integers(0, 2 * HOUR_MS), st.integers(0, 40 * DAY_MS)
) | st.integers(-5 * MINUTE_MS, 0)
moments = st.one_of(
    st.integers(0, 2 * HOUR_MS), st.integers(0, 3 * DAY_MS), st.integers(0, 45 * DAY_MS)
)


@st.composite
def histories(draw):
    """Events with event time and arrival, in order of arrival."""
    drawn = draw(
        st.lists(
            st.tuples(moments, delays, st.sampled_from(KINDS), *[st.sampled_from(IDS)] * 4),
            max_size=40,
        )
    )
    events = [
        {
            "event_id": f"e{place}",
            "event_time_ms": T0 + moment,
            "ingested_at_ms": T0 + moment + delay,
            "kind": kind,
            "user_id": user,
            "video_id": None if kind == "search" else video,
            "author_id": None if kind == "search" else author,
            "query": query,
            "dwell_ms": moment % 1000,
            "duplicate": moment % 11 == 7,
        }
        for place, (moment, delay, kind, user, video, author, query) in enumerate(drawn)
    ]
    return sorted(events, key=lambda event: event["ingested_at_ms"])


labels = st.lists(st.tuples(st.sampled_from([*IDS, "absent"]), moments), max_size=12)


@pytest.mark.parametrize("entity", list(DEFINITIONS))
@given(events=histories(), asked=labels)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_point_in_time_read_equals_the_online_read_at_that_moment(
    entity, events, asked, event_table
):
    id_column = DEFINITIONS[entity].id_column
    table = event_table(events)
    wanted = pl.DataFrame(
        {id_column: [i for i, _ in asked], "time_ms": [T0 + m for _, m in asked]},
        schema={id_column: pl.String, "time_ms": pl.Int64},
    )
    frame = features_as_of(pl.from_arrow(table), wanted, entity)
    assert len(frame) == len(asked)
    for place, (entity_id, moment) in enumerate(asked):
        online = _online_at(entity, table, T0 + moment).read(entity, [entity_id], T0 + moment)
        assert frame.status[place] == online.status[0]
        assert frame.last_event_ms[place] == online.last_event_ms[0]
        for name, column in online.columns.items():
            assert frame.columns[name][place] == column[0], name


def _online_at(entity, table, now_ms):
    """A store that folded what arrived before now, two events at a time."""
    store = MemoryFeatureStore()
    arrived = table.filter(np.less(table.column("ingested_at_ms").to_numpy(), now_ms))
    for offset, start in enumerate(range(0, arrived.num_rows, 2)):
        store.fold(entity, arrived.slice(start, 2), Stamp("one", 0, offset))
    return store


@pytest.mark.parametrize("entity", ["user", "video"])
@given(events=histories())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_values_equal_an_independent_count(entity, events, event_table, expected, row_of):
    now = max([T0, *(event["event_time_ms"] for event in events)]) + MINUTE_MS
    store = MemoryFeatureStore()
    store.fold(entity, event_table(events), Stamp("one", 0, 0))
    counted = [event for event in events if not event["duplicate"]]
    frame = store.read(entity, IDS, now)
    for place, entity_id in enumerate(IDS):
        wanted = expected(entity, entity_id, counted, now)
        got = row_of(frame, place)
        times = [e["event_time_ms"] for e in counted]
        for name, value in wanted.items():
            if isinstance(value, int) or len(set(times)) == len(times):
                assert got[name] == value, name
            else:  # events of one millisecond: the order among them is by hash
                assert sorted(map(str, got[name])) == sorted(map(str, value)), name


def test_a_label_does_not_see_its_own_millisecond(event_table):
    event = {"kind": "like", "event_time_ms": T0, "video_id": "v"}
    asked = pl.DataFrame({"user_id": ["u", "u"], "time_ms": [T0, T0 + 1]})
    frame = features_as_of(pl.from_arrow(event_table([event])), asked, "user")
    assert frame.columns["like_count_all"].tolist() == [0, 1]


def test_a_late_event_is_missing_until_it_arrives(event_table):
    event = {"kind": "like", "event_time_ms": T0, "ingested_at_ms": T0 + DAY_MS, "video_id": "v"}
    asked = pl.DataFrame({"user_id": ["u"] * 2, "time_ms": [T0 + HOUR_MS, T0 + DAY_MS + 1]})
    frame = features_as_of(pl.from_arrow(event_table([event])), asked, "user")
    assert frame.columns["like_count_all"].tolist() == [0, 1]
    assert frame.columns["like_count_1h"].tolist() == [0, 0]


def test_no_label_is_dropped_and_their_order_stays(event_table):
    event = {"kind": "like", "event_time_ms": T0, "video_id": "v"}
    asked = pl.DataFrame(
        {"user_id": ["w", "u", "x", "u", "u"], "time_ms": [T0, T0 + 9, T0, T0 - 9, T0 + 9]}
    )
    frame = features_as_of(pl.from_arrow(event_table([event])), asked, "user")
    assert frame.ids == ("w", "u", "x", "u", "u")
    assert frame.status.tolist() == [0, Status.PRESENT, 0, 0, Status.PRESENT]


def test_kinds_may_be_strings_as_in_a_training_log(event_table):
    event = {"kind": "like", "event_time_ms": T0, "video_id": "v"}
    events = pl.from_arrow(event_table([event])).with_columns(kind=pl.lit("like"))
    asked = pl.DataFrame({"video_id": ["v"], "time_ms": [T0 + 1]})
    frame = features_as_of(events.drop("duplicate"), asked, "video")
    assert frame.columns["like_count_all"].tolist() == [1]


def test_no_labels_give_no_rows(event_table):
    event = {"kind": "like", "event_time_ms": T0, "video_id": "v"}
    asked = pl.DataFrame(schema={"user_id": pl.String, "time_ms": pl.Int64})
    assert len(features_as_of(pl.from_arrow(event_table([event])), asked, "user")) == 0


def test_an_unmarked_repeat_counts_once_as_online(event_table):
    events = [
        {"kind": "like", "event_time_ms": T0 + i, "event_id": "same", "video_id": "v"}
        for i in range(2)
    ]
    asked = pl.DataFrame({"user_id": ["u"], "time_ms": [T0 + 9]})
    frame = features_as_of(pl.from_arrow(event_table(events)), asked, "user")
    assert frame.columns["like_count_all"].tolist() == [1]


@pytest.mark.parametrize("entity", ["user", "video"])
@given(events=histories(), asked=labels)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_sorted_join_equals_folding_again(entity, events, asked, event_table):
    frame = pl.from_arrow(event_table(events))
    ids, times = [i for i, _ in asked], [T0 + m for _, m in asked]
    schema = {DEFINITIONS[entity].id_column: pl.String, "time_ms": pl.Int64}
    wanted = pl.DataFrame([ids, times], schema=schema)
    by_runs = features_as_of(frame, wanted, entity)
    again = replay_features(DEFINITIONS[entity], frame, ids, np.array(times, np.int64))
    for name, column in again.columns.items():
        assert by_runs.columns[name].tolist() == column.tolist(), name
    assert by_runs.status.tolist() == again.status.tolist()


def test_an_event_dated_days_ahead_reads_as_online(event_table):
    """A row prunes by its newest event, so a date far ahead empties the windows before it."""
    ahead = {"kind": "like", "event_time_ms": T0 + 9 * DAY_MS, "ingested_at_ms": T0}
    usual = {"kind": "like", "event_time_ms": T0, "video_id": "v"}
    table = event_table([ahead | {"video_id": "v"}, usual])
    asked = pl.DataFrame({"user_id": ["u"], "time_ms": [T0 + 1]})
    frame = features_as_of(pl.from_arrow(table), asked, "user")
    online = _online_at("user", table, T0 + 1).read("user", ["u"], T0 + 1)
    assert {n: c.tolist() for n, c in frame.columns.items()} == {
        n: c.tolist() for n, c in online.columns.items()
    }
    assert frame.columns["like_count_1d"].tolist() == [0]
