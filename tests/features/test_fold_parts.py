"""Laws of what a fold is made of: merging, scripts that a server forgets, batches cut in parts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.merge import merged_order, newest_first_key, rank, ties_by_falling_hash
from streams.bus import Stamp

NOW = 1_700_000_000_000
small = st.lists(st.integers(0, 6), max_size=30)
parts = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 4)), max_size=30)


@given(old=small, new=small)
def test_merging_is_sorting_both_with_old_ones_first_among_equals(old, new):
    before, added = np.array(sorted(old), np.int64), np.array(new, np.int64)
    order = merged_order(before, added)
    both = np.concatenate([before, added])
    assert order.tolist() == np.argsort(both, kind="stable").tolist()


@given(old=parts, new=parts)
def test_rows_stay_in_one_total_order_however_parts_arrive(old, new):
    def columns(some):
        return tuple(np.array(c, np.int64) for c in zip(*some, strict=True)) if some else [[]] * 3

    first = sorted(old, key=lambda p: (p[0], -p[1], -p[2]))
    group, time, hashes = (np.array(c, np.int64) for c in columns(first + new))
    key = newest_first_key(group, time)
    order = merged_order(key[: len(first)], key[len(first) :])
    order = ties_by_falling_hash(order, key, hashes.astype(np.uint64))
    wanted = sorted(old + new, key=lambda p: (p[0], -p[1], -p[2]))
    assert [(first + new)[place] for place in order] == wanted


@given(groups=small)
def test_rank_counts_from_zero_within_each_run(groups):
    seen: dict[int, int] = {}
    wanted = []
    for group in sorted(groups):
        wanted.append(seen.get(group, 0))
        seen[group] = wanted[-1] + 1
    assert rank(np.array(sorted(groups), np.int64)).tolist() == wanted


def test_a_server_that_forgets_its_scripts_is_taught_them_again(online, event_table):
    for offset in range(3):
        event = {"kind": "like", "event_time_ms": NOW + offset, "event_id": f"{offset}"}
        assert online.fold("user", event_table([event]), Stamp("one", 0, offset)) == 1
        online.connection.client.script_flush()
    assert online.read("user", ["u"], NOW + 9).columns["like_count_all"].tolist() == [3]


def test_a_batch_of_more_rows_than_one_round_of_calls_is_folded_whole(online, event_table):
    events = [
        {"kind": "like", "event_time_ms": NOW, "event_id": f"{i}", "user_id": f"u{i}"}
        for i in range(5000)
    ]
    assert online.fold("user", event_table(events), Stamp("one", 0, 0)) == 5000
    frame = online.read("user", [f"u{i}" for i in range(5000)], NOW)
    assert frame.columns["like_count_1h"].tolist() == [1] * 5000
