"""Laws of a feature store, for the stores in memory and on Valkey."""

from __future__ import annotations

import numpy as np
import pytest

from features.definitions import DEFINITIONS, USER
from features.store import FeatureStore, Status
from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery, combine
from streams.contract.clock import DAY_MS, HOUR_MS, MINUTE_MS

NOW = 1_700_000_000_000
ALL = ("user", "video", "author", "query")


def like(at_ms, **more):
    return {"kind": "like", "event_time_ms": at_ms, "video_id": "v", "author_id": "a"} | more


def at(offset, topic_id="one", partition=0):
    return Stamp(topic_id, partition, offset)


def liked(store: FeatureStore, window="all", now=NOW, entity="user", entity_id="u") -> int:
    return int(store.read(entity, [entity_id], now).columns[f"like_count_{window}"][0])


@pytest.mark.parametrize("entity", ALL)
def test_an_unknown_entity_reads_absent_with_zeros_and_empty_lists(store, entity):
    frame = store.read(entity, ["absent", "unknown"], NOW)
    definition = DEFINITIONS[entity]
    assert frame.status.tolist() == [Status.ABSENT, Status.ABSENT]
    assert tuple(frame.columns) == definition.columns
    assert all(frame.columns[name].tolist() == [0, 0] for name in definition.count_columns)
    lists = definition.text_list_columns + definition.time_list_columns
    assert all(frame.columns[name].tolist() == [[], []] for name in lists)


def test_no_ids_read_as_no_rows(store):
    frame = store.read("video", [], NOW)
    assert len(frame) == 0
    assert all(len(column) == 0 for column in frame.columns.values())


def test_rows_are_in_the_requested_order_with_repeats(store, event_table):
    events = [like(NOW, event_id="1"), like(NOW, event_id="2", video_id="w")]
    events.append(like(NOW, event_id="3", video_id="w"))
    store.fold("video", event_table(events), at(1))
    frame = store.read("video", ["w", "x", "v", "w"], NOW)
    assert frame.ids == ("w", "x", "v", "w")
    assert frame.columns["like_count_all"].tolist() == [2, 0, 1, 2]
    assert frame.status.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("entity", ALL)
def test_a_replayed_batch_changes_nothing(store, event_table, entity):
    batch = event_table([like(NOW, query="q"), like(NOW - HOUR_MS, event_id="x", query="q")])
    assert store.fold(entity, batch, at(7)) == 1
    assert store.fold(entity, batch, at(7)) == 0
    assert store.fold(entity, batch, at(3)) == 0


def test_each_partition_has_its_own_offsets(store, event_table):
    store.fold("user", event_table([like(NOW, event_id="1")]), at(9))
    store.fold("user", event_table([like(NOW, event_id="2")]), at(2, partition=1))
    assert liked(store) == 2


def test_two_partitions_in_one_batch_each_count_by_their_offsets(store, event_table):
    """One user of each and one of both; a replay changes nothing."""

    def message(partition, offset, *users):
        table = event_table(
            [like(NOW - 9, user_id=u, event_id=f"{partition}{offset}{u}") for u in users]
        )
        return Delivery("t", at(offset, partition=partition), table)

    first = [message(0, 3, "u", "both"), message(1, 1, "w", "both")]
    for again in range(2):
        delivery = combine([*first, message(1, 2, "w")] if again else first)
        store.fold("user", delivery.table, delivery.stamp)
    assert [liked(store, entity_id=user) for user in ("u", "w", "both")] == [1, 2, 2]


def test_a_recreated_topic_counts_new_events_from_offset_zero(store, event_table):
    store.fold("user", event_table([like(NOW, event_id="1")]), at(100))
    store.fold("user", event_table([like(NOW, event_id="2")]), at(0, topic_id="two"))
    assert liked(store) == 2


def test_an_event_republished_to_a_recreated_topic_counts_once(store, event_table):
    store.fold("user", event_table([like(NOW, event_id="1")]), at(100))
    again = event_table([like(NOW, event_id="1"), like(NOW, event_id="2")])
    store.fold("user", again, at(0, topic_id="two"))
    assert liked(store) == 2


def test_a_zombie_of_a_deleted_topic_changes_nothing(store, event_table):
    old = [like(NOW - i * HOUR_MS, event_id=f"old {i}") for i in range(300)]
    for offset in range(3):
        store.fold("user", event_table(old[offset * 100 : offset * 100 + 100]), at(offset))
    store.fold("user", event_table([like(NOW, event_id="new")]), at(0, topic_id="two"))
    for offset in range(3):
        store.fold("user", event_table(old[offset * 100 : offset * 100 + 100]), at(offset))
    assert liked(store) == 301


def test_rows_marked_duplicate_are_not_counted(store, event_table):
    marked = like(NOW, event_id="other", duplicate=True)
    store.fold("user", event_table([like(NOW), marked]), at(1))
    assert liked(store) == 1


def test_an_id_twice_in_one_batch_is_counted_once(store, event_table):
    store.fold("user", event_table([like(NOW, event_id="x"), like(NOW, event_id="x")]), at(1))
    assert liked(store) == 1


def test_the_same_event_id_of_two_users_is_two_events(store, event_table):
    batch = [like(NOW, event_id="x", user_id="u"), like(NOW, event_id="x", user_id="w")]
    store.fold("video", event_table(batch), at(1))
    assert liked(store, entity="video", entity_id="v") == 2


def test_a_silent_user_s_last_hour_is_zero(store, event_table):
    store.fold("user", event_table([like(NOW)]), at(1))
    assert liked(store, "1h", NOW) == 1
    assert liked(store, "1h", NOW + HOUR_MS + 5 * MINUTE_MS) == 0
    assert liked(store, "30d", NOW + HOUR_MS + 5 * MINUTE_MS) == 1
    assert liked(store, "30d", NOW + 32 * DAY_MS) == 0
    assert liked(store, "all", NOW + 32 * DAY_MS) == 1


def test_a_window_is_never_shorter_than_declared(store, event_table):
    store.fold("user", event_table([like(NOW)]), at(1))
    spans = {"1h": HOUR_MS, "1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}
    assert {w: liked(store, w, NOW + span) for w, span in spans.items()} == dict.fromkeys(spans, 1)


def test_a_late_event_counts_in_the_tile_of_its_event_time(store, event_table):
    store.fold("user", event_table([like(NOW, event_id="1")]), at(1))
    late = like(NOW - 3 * HOUR_MS, event_id="2", ingested_at_ms=NOW, late=True)
    store.fold("user", event_table([late]), at(2))
    assert [liked(store, w) for w in ("1h", "1d", "all")] == [1, 2, 2]
    engaged = store.read("user", ["u"], NOW).columns["engaged_time_ms"][0]
    assert engaged == [NOW, NOW - 3 * HOUR_MS]


def test_an_event_far_older_than_every_tile_still_counts_in_all(store, event_table):
    store.fold("user", event_table([like(NOW, event_id="1")]), at(1))
    store.fold("user", event_table([like(NOW - 90 * DAY_MS, event_id="2")]), at(2))
    assert [liked(store, w) for w in ("30d", "all")] == [1, 2]


def test_lists_keep_the_newest_n_with_kind_and_time(store, event_table):
    events = [like(NOW + i, event_id=f"{i}", video_id=f"v{i}") for i in range(70)]
    store.fold("user", event_table(events[35:]), at(1))
    store.fold("user", event_table(events[:35]), at(2))
    frame = store.read("user", ["u"], NOW + DAY_MS)
    newest = list(reversed(events))[:50]
    assert frame.columns["engaged_video_id"][0] == [e["video_id"] for e in newest]
    assert frame.columns["engaged_time_ms"][0] == [e["event_time_ms"] for e in newest]
    assert frame.columns["engaged_kind"][0] == ["like"] * 50


def test_text_of_any_script_is_preserved(store, event_table):
    queries = ["Würfel", "電影 推薦", "🎬" * 60, "a\0b"]
    events = [
        {"kind": "search", "event_time_ms": NOW + i, "query": q, "event_id": f"{i}"}
        for i, q in enumerate(queries)
    ]
    store.fold("user", event_table(events), at(1))
    store.fold("query", event_table(events), at(1))
    listed = store.read("user", ["u"], NOW + DAY_MS).columns["clicked_query"][0]
    assert listed == queries[::-1]
    counts = store.read("query", queries, NOW + DAY_MS).columns["search_count_all"]
    assert counts.tolist() == [1, 1, 1, 1]


def test_events_without_the_entity_are_not_folded(store, event_table):
    search = {"kind": "search", "event_time_ms": NOW, "query": "q"}
    assert store.fold("video", event_table([search]), at(1)) == 0
    assert store.fold("author", event_table([]), at(2)) == 0


def test_an_old_row_reads_expired_and_keeps_its_values(store, event_table):
    store.fold("user", event_table([like(NOW)]), at(1))
    frame = store.read("user", ["u"], NOW + USER.ttl_ms + 1)
    assert frame.status.tolist() == [Status.EXPIRED]
    assert frame.columns["like_count_all"].tolist() == [1]
    assert frame.last_event_ms.tolist() == [NOW]
    assert store.read("user", ["u"], NOW + USER.ttl_ms).status.tolist() == [Status.PRESENT]


def test_an_erased_user_stays_erased_when_the_log_is_replayed(store, event_table):
    batch = event_table([like(NOW, event_id="1"), like(NOW + 5, event_id="2")])
    store.fold("user", batch, at(1))
    store.erase("u", NOW + 5)
    assert store.fold("user", batch, at(1)) == 0
    assert store.fold("user", batch, at(0, topic_id="two")) == 0
    frame = store.read("user", ["u"], NOW)
    assert frame.status.tolist() == [Status.ABSENT]
    assert frame.columns["engaged_video_id"].tolist() == [[]]


def test_a_user_who_returns_after_erasure_starts_from_zero(store, event_table):
    store.fold("user", event_table([like(NOW, event_id="1")]), at(1))
    store.erase("u", NOW + 5)
    both = event_table([like(NOW, event_id="1"), like(NOW + 6, event_id="2")])
    store.fold("user", both, at(2))
    assert liked(store) == 1
    assert store.fold("user", event_table([like(NOW + 1, event_id="3")]), at(3)) == 0


def test_erasure_without_a_time_is_permanent(store, event_table):
    store.erase("u")
    assert store.fold("user", event_table([like(NOW + 365 * DAY_MS)]), at(1)) == 0


def test_counts_of_any_size_are_integers(store, event_table):
    day = 86_400_000
    plays = [
        {"kind": "play", "event_time_ms": NOW + i, "dwell_ms": day, "event_id": f"{i}"}
        for i in range(1000)
    ]
    store.fold("user", event_table(plays), at(1))
    total = store.read("user", ["u"], NOW + DAY_MS).columns["dwell_ms_sum_all"]
    assert total.dtype == np.int64
    assert total.tolist() == [1000 * day]
