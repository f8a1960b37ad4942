"""Late events at the edges of windows: the sorted join equals folding again, to the ms.

Event times, arrivals and labels are drawn within milliseconds of tile and window edges, so that
every comparison in the join meets equality.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.definitions import DEFINITIONS, WINDOWS
from features.offline.point_in_time.join import features_as_of, join_features
from features.offline.point_in_time.order import LabelOrder, SortedMoments, order_by
from features.offline.point_in_time.replay import replay_features
from streams.contract.clock import DAY_MS, MINUTE_MS

T0 = 1_700_006_400_000  # a day's first millisecond
TILES = sorted({window.tile_ms for window in WINDOWS if window.tile_ms})
SPANS = [0, *(window.span_ms for window in WINDOWS)]
IDS = ["a", "b"]

jitter = st.integers(-2, 2)
edges = st.builds(
    lambda tile, count, span, ms: T0 + tile * count + span + ms,
    st.sampled_from(TILES),
    st.integers(-1, 2),
    st.sampled_from(SPANS),
    jitter,
)


@st.composite
def late_events(draw):
    """(event time, arrival): most arrive at an edge, long after or shortly before the event."""
    events = []
    for _ in range(draw(st.integers(0, 25))):
        time = draw(edges)
        arrival = draw(st.one_of(edges, st.integers(time, time + 3)))
        events.append((time, max(arrival, time - 5 * MINUTE_MS)))
    return events


asked_for = st.lists(st.tuples(st.sampled_from([*IDS, "unknown"]), edges), max_size=15)


@pytest.mark.parametrize("entity", ["user", "video"])
@given(events=late_events(), asked=asked_for, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_at_every_edge_the_sorted_join_equals_folding_again(
    entity, events, asked, seed, event_table
):
    table = pl.from_arrow(event_table(_rows(events, seed)))
    wanted = _labels(entity, asked)
    ids = wanted[DEFINITIONS[entity].id_column].to_list()
    again = replay_features(DEFINITIONS[entity], table, ids, wanted["time_ms"].to_numpy())
    by_places = features_as_of(table, wanted, entity)
    assert by_places.status.tolist() == again.status.tolist()
    assert by_places.last_event_ms.tolist() == again.last_event_ms.tolist()
    for name, column in again.columns.items():
        assert by_places.columns[name].tolist() == column.tolist(), name


@pytest.mark.parametrize("entity", ["user", "video"])
@given(events=late_events(), asked=asked_for, seed=st.integers(0, 99), twice=st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_joined_frame_holds_the_reader_s_values(
    entity, events, asked, seed, twice, event_table
):
    rows = _rows(events, seed)
    table = pl.from_arrow(event_table(rows + rows[:1] * twice))
    wanted = _labels(entity, asked).with_row_index("label")
    beside, read = join_features(table, wanted, entity), features_as_of(table, wanted, entity)
    assert beside[wanted.columns].equals(wanted)
    assert beside["status"].to_list() == read.status.tolist()
    assert beside["last_event_ms"].to_list() == read.last_event_ms.tolist()
    assert beside.columns[len(wanted.columns) + 2 :] == list(DEFINITIONS[entity].columns)
    for name, column in read.columns.items():
        assert beside[name].to_list() == column.tolist(), name


def test_a_late_event_counts_from_its_arrival_until_its_window_leaves_it(event_table):
    late = [{"kind": "like", "event_time_ms": T0, "ingested_at_ms": T0 + DAY_MS, "video_id": "v"}]
    leaves = T0 + DAY_MS + 60 * MINUTE_MS  # the day's window, one tile longer
    asked = [T0, T0 + 1, T0 + DAY_MS, T0 + DAY_MS + 1, leaves - 1, leaves]
    wanted = pl.DataFrame({"user_id": ["u"] * len(asked), "time_ms": asked})
    frame = join_features(pl.from_arrow(event_table(late)), wanted, "user")
    assert frame["like_count_1d"].to_list() == [0, 0, 0, 1, 1, 0]
    assert frame["like_count_all"].to_list() == [0, 0, 0, 1, 1, 1]
    assert frame["engaged_video_id"].list.len().to_list() == [0, 0, 0, 1, 1, 1]


moments = st.lists(st.tuples(st.integers(0, 70_000), st.integers(-50, 50)), max_size=40)


@given(moments)
def test_order_is_by_row_then_time_and_stable(drawn):
    row, time = (np.array([m[i] for m in drawn], np.int64) for i in (0, 1))
    assert order_by(row, time).tolist() == np.lexsort((time, row)).tolist()


@given(moments, moments)
def test_in_flight_and_ahead_cover_every_label_between_time_and_arrival(events, labels):
    row, time = (np.array([m[i] % 3 if i == 0 else m[i] for m in events], np.int64) for i in (0, 1))
    asked, at = (np.array([m[i] % 3 if i == 0 else m[i] for m in labels], np.int64) for i in (0, 1))
    by, of = order_by(row, time), order_by(asked, at)
    arrival = time + np.array([m[0] % 61 - 30 for m in events], np.int64)
    order = LabelOrder(
        SortedMoments(row[by], time[by]), arrival[by], SortedMoments(asked[of], at[of])
    )
    for runs, between in (
        (order.in_flight, lambda t, a, now: t < now <= a),
        (order.ahead, lambda t, a, now: a < now <= t),
    ):
        held = {
            (event, label)
            for event, start, stop in zip(runs.event, runs.start, runs.stop, strict=True)
            for label in range(start, stop)
        }
        assert held == {
            (event, label)
            for event in range(len(by))
            for label in range(len(of))
            if row[by][event] == asked[of][label]
            and between(time[by][event], arrival[by][event], at[of][label])
        }


def _rows(events, seed):
    rng = np.random.default_rng(seed)
    kinds = ["shown", "play", "like", "skip", "order", "query_click"]
    return [
        {
            "event_id": f"e{place}",
            "event_time_ms": time,
            "ingested_at_ms": arrival,
            "kind": kinds[rng.integers(len(kinds))],
            "user_id": IDS[rng.integers(2)],
            "video_id": IDS[rng.integers(2)],
            "query": f"q{place}",
            "dwell_ms": int(rng.integers(1000)),
        }
        for place, (time, arrival) in sorted(enumerate(events), key=lambda e: e[1][1])
    ]


def _labels(entity, asked):
    schema = {DEFINITIONS[entity].id_column: pl.String, "time_ms": pl.Int64}
    return pl.DataFrame([[i for i, _ in asked], [t for _, t in asked]], schema=schema)
