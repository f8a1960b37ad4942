"""Laws of the compiled loops: they merge as sorting and counting by hand would."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from features.definitions import DEFINITIONS, TILE_SIZES_MS
from features.kernels import fold as loops
from features.kernels import packing
from features.kernels.layout import split_key
from features.online.compare_and_set import CompareAndSet
from features.online.feast_keys import RowFormat
from features.online.row_cache import EntityIds, RowCache
from features.rows.aggregate import READER_SLACK_MS, fold_events, group_by_entity
from features.rows.byte_slices import ByteSlices, offsets_from_lengths, take_slices
from features.rows.decode import decode
from streams.bus.contract import Stamp
from streams.contract.clock import DAY_MS, HOUR_MS

T0 = 1_700_000_000_000
kinds = st.sampled_from(["play", "like", "query_click", "shown", "order"])
happened = st.tuples(st.integers(0, 3), st.integers(0, 40 * DAY_MS), kinds, st.integers(0, 999))
batches = st.lists(st.lists(happened, max_size=12), min_size=1, max_size=4)


def folded(entity, event_table, batches):
    definition, stored = DEFINITIONS[entity], {}
    for offset, events in enumerate(batches):
        if not events:
            continue
        batch = group_by_entity(definition, event_table(events))
        rows = ByteSlices.from_list([stored.get(i) for i in batch.ids])
        done = fold_events(definition, rows, batch, Stamp("e", 0, offset))
        for place, blob in zip(done.changed, done.rows.to_list(), strict=True):
            stored[batch.ids[place]] = blob
    return definition, stored


def as_events(batches):
    numbers = iter(range(10_000))
    return [
        [
            {
                "kind": kind, "event_time_ms": T0 + after, "event_id": f"e{next(numbers)}",
                "user_id": f"u{user}", "video_id": f"v{dwell}", "query": f"q {dwell}",
                "dwell_ms": dwell,
            }
            for user, after, kind, dwell in batch
        ]
        for batch in batches
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(batches=batches)
def test_tiles_are_the_counts_of_their_spans_and_none_is_kept_too_long(event_table, batches):
    made = as_events(batches)
    definition, stored = folded("user", event_table, made)
    for entity_id, blob in stored.items():
        mine = [e for batch in made for e in batch if e["user_id"] == entity_id]
        newest, wanted = max(e["event_time_ms"] for e in mine), {}
        for slot, counter in enumerate(definition.counters):
            for size, tile_ms in enumerate(TILE_SIZES_MS):
                spans = [w.span_ms for w in counter.windows if w.tile_ms == tile_ms]
                for event in mine if spans else ():
                    if event["kind"] not in counter.kinds:
                        continue
                    index = event["event_time_ms"] // tile_ms if tile_ms else 0
                    end = (index + 1) * tile_ms
                    if tile_ms and end <= newest - max(spans) - READER_SLACK_MS:
                        continue
                    added = event["dwell_ms"] if hasattr(counter, "source") else 1
                    place = (size, slot, index)
                    wanted[place] = wanted.get(place, 0) + added
        rows = decode([blob])
        keys = zip(*(part.tolist() for part in split_key(rows.tile["key"])), strict=True)
        assert list(zip(keys, rows.tile["value"].tolist(), strict=True)) == sorted(wanted.items())


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(happened, max_size=60), min_size=1, max_size=4))
def test_lists_hold_the_newest_in_one_total_order(event_table, batches):
    made = as_events([[(u, t // DAY_MS, k, d) for u, t, k, d in batch] for batch in batches])
    definition, stored = folded("video", event_table, made)
    (feature,) = definition.lists
    for entity_id, blob in stored.items():
        rows = decode([blob])
        of_list = [e for batch in made for e in batch if e["video_id"] == entity_id]
        of_list = [e for e in of_list if e["kind"] in feature.kinds]
        texts = [t.decode() for t in rows.text.to_pylist()]
        order = list(zip(rows.entry["time"].tolist(), rows.entry["hash"].tolist(), strict=True))
        assert order == sorted(order, reverse=True)
        newest = sorted((e["event_time_ms"] for e in of_list), reverse=True)[: feature.n]
        assert [time for time, _ in order] == newest
        assert sorted(texts) == sorted(e["query"] for e in of_list)[: feature.n]


def test_a_full_list_gives_up_its_oldest_to_newer_ones_only(event_table):
    """Whatever comes in which of two batches, a list is the newest of all by time and hash."""
    (feature,) = DEFINITIONS["video"].lists

    def clicks(times, first):
        return [
            {"kind": "query_click", "event_time_ms": T0 + t, "event_id": f"{first}{i}",
             "video_id": "v", "query": f"q{first}{i}"}
            for i, t in enumerate(times)
        ]  # fmt: skip

    full = clicks(range(1000, 1000 + 10 * feature.n, 10), "old")
    news = clicks([1005, 40, 5000, 1490, 1490, 1490], "new")
    _, stored = folded("video", event_table, [full, news])
    entry = decode([stored["v"]]).entry
    made = list(zip((entry["time"] - T0).tolist(), entry["hash"].tolist(), strict=True))
    assert made == sorted(made, reverse=True)
    times = sorted((e["event_time_ms"] - T0 for e in full + news), reverse=True)
    assert [time for time, _ in made] == times[: feature.n]


def test_no_batch_makes_a_worker_compile_again(event_table):
    """What `python -m deploy.compile` compiled is all that folds need, filtered or not."""
    events = as_events([[(i, i * HOUR_MS, "play", i) for i in range(5)]] * 3)
    for duplicate in (False, True):
        for batch in events:
            batch[0]["duplicate"] = duplicate
        for entity in DEFINITIONS:
            folded(entity, event_table, events)
    for compiled in (loops.fold_rows, loops.by_row):
        assert len(compiled.signatures) == 1


def test_no_write_makes_a_worker_compile_again():
    """What `python -m deploy.compile` compiled is all that the cache and the packing need."""
    kernels = [value for value in vars(packing).values() if hasattr(value, "signatures")]
    before = [len(kernel.signatures) for kernel in kernels]
    user, keys, times = DEFINITIONS["user"], np.arange(1, 4, dtype=np.uint64), np.arange(3)
    names = pa.array(["a", "b", "c"])
    ids, rows = EntityIds.of(names), ByteSlices.from_list([b"x" * 40] * 3)
    cache = RowCache(2)
    for _ in range(2):
        cache.put("user", ids.keys, ids.checks, rows)
        cache.find("user", ids.keys, ids.checks)
    cache._rows["user"]._compact(1)
    layout = RowFormat(user, "")
    layout.packed_sets(ids.ids, rows, times)
    list(CompareAndSet(layout, b"", 0).calls(ids.ids, keys, rows, times, 2))
    assert [len(kernel.signatures) for kernel in kernels] == before


spans = st.lists(st.binary(max_size=6), min_size=1, max_size=20)


@given(spans=spans, data=st.data())
def test_taking_spans_is_joining_them_one_by_one(spans, data):
    order = data.draw(st.lists(st.integers(0, len(spans) - 1), max_size=30))
    lengths = np.array(list(map(len, spans)), np.int64)
    wanted = b"".join(spans[place] for place in order)
    got = take_slices(b"".join(spans), offsets_from_lengths(lengths), np.array(order, np.int64))
    assert got.tobytes() == wanted
