"""The exactness benchmark sends what it states, and finds what differs from it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from benchmarks.exactness.expected import expected_rows, row_differences
from benchmarks.exactness.stored_state import _differing, _other_fields
from benchmarks.exactness.stream import FORMS, Sent, stream
from features.memory_store import MemoryFeatureStore
from streams.bus.contract import Stamp
from streams.codec.decode import decode_json
from streams.contract.events import KIND_CODE
from streams.contract.schema import EVENT_SCHEMA, conform

N = 3_000


@pytest.fixture(scope="module")
def sent() -> Sent:
    return stream(N, seed=3)


def test_malformed_events_are_refused_and_their_repairs_are_correct(sent: Sent) -> None:
    values = [value for _, values in sent.messages() for value in values]
    decoded = decode_json(values)
    assert {values[refusal.row] for refusal in decoded.rejected} == {*sent.broken.values()}
    assert len(sent.broken) == len(FORMS)
    repaired = decode_json([sent.repairs()[value] for value in sent.broken.values()])
    assert not repaired.rejected
    ids = sent.events[list(sent.broken)]["event_id"]
    assert repaired.table["event_id"].to_pylist() == ids.to_list()


def test_event_times_are_distinct_and_one_percent_is_sent_twice(sent: Sent) -> None:
    assert sent.events["event_time_ms"].n_unique() == N
    assert sent.events["event_time_ms"].max() == sent.now_ms
    assert np.bincount(sent.copies).tolist() == [0, N - N // 100, N // 100]
    assert all(sent.copies[row] == 1 for row in sent.broken)


def test_a_log_that_differs_is_detected(sent: Sent) -> None:
    events = sent.events
    assert not _differing(events, events, "counted")
    assert not _other_fields(events, events)
    assert len(_differing(events[1:], events, "counted")) == 1
    assert len(_differing(pl.concat([events, events[:2]]), events, "counted")) == 2
    moved = events.with_columns(
        event_time_ms=pl.col("event_time_ms") + (pl.col("event_id") == events["event_id"][5])
    )
    assert len(_other_fields(moved, events)) == 1


def test_rows_that_differ_from_polars_are_detected(sent: Sent) -> None:
    expected = expected_rows(sent.events, "user", sent.now_ms)
    store = MemoryFeatureStore()
    stored = sent.events.with_columns(
        kind=pl.col("kind").replace_strict(KIND_CODE, return_dtype=pl.UInt8),
        ingested_at_ms=pl.col("event_time_ms"), surface=pl.lit("feed"), late=False,
        duplicate=False, source_partition=pl.lit(0, pl.Int32),
        source_offset=pl.int_range(pl.len()),
    )  # fmt: skip
    table = conform(stored.to_arrow(), EVENT_SCHEMA)
    store.fold("user", table[:-1], Stamp("topic-id", 0, 0))
    wrong = row_differences(store, "user", expected, sent.now_ms)
    assert wrong
    assert all(sent.events["user_id"][-1] in difference for difference in wrong)
    store.fold("user", table[-1:], Stamp("topic-id", 0, 1))
    assert not row_differences(store, "user", expected, sent.now_ms)
