"""Rows do not depend on how messages are combined, live or in a replay."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.definitions import DEFINITIONS
from features.live.worker import fold_delivery
from features.memory_store import MemoryFeatureStore
from features.rows.finalize import finalize_rows
from streams.bus.contract import Stamp
from streams.bus.delivery import MESSAGE_OFFSET, MESSAGE_PARTITION, Delivery, combine
from streams.contract.clock import DAY_MS
from streams.contract.events import KINDS
from streams.contract.topics import EVENTS_BY_USER
from streams.telemetry import pack_traceparents, unpack_traceparents

MESSAGES, GAP = 12, 3  # transactions leave gaps between offsets
NAMES = [kind for kind in KINDS if kind != "search"]


@pytest.fixture(scope="module")
def messages(event_table) -> list[Delivery]:
    """One partition's messages: 0 to 6 events each of few users, some marked duplicate."""
    rng = np.random.default_rng(3)

    def event(message: int, row: int) -> dict[str, object]:
        return {
            "event_id": f"{message}/{row}",
            "kind": NAMES[rng.integers(len(NAMES))],
            "user_id": f"u{rng.integers(4)}",
            "video_id": f"v{rng.integers(3)}",
            "author_id": "a",
            "query": f"q{rng.integers(2)}",
            "dwell_ms": int(rng.integers(1000)),
            "event_time_ms": 1_700_000_000_000 + int(rng.integers(5 * DAY_MS)),
            "duplicate": bool(rng.random() < 0.1),
        }

    deliveries = []
    for number in range(MESSAGES):
        events = [event(number, row) for row in range(rng.integers(7))]
        deliveries.append(
            Delivery(EVENTS_BY_USER, Stamp("e", 0, number * GAP), event_table(events))
        )
    return deliveries


@pytest.fixture(scope="module")
def one_by_one(messages) -> dict[str, dict[str, bytes]]:
    return folded([[message] for message in messages])


def folded(batches: list[list[Delivery]]) -> dict[str, dict[str, bytes]]:
    store = MemoryFeatureStore()
    for entity in DEFINITIONS:
        for batch in batches:
            fold_delivery(store, entity)(combine(batch))
    return store._rows


@st.composite
def restarts(draw: st.DrawFn) -> list[list[int]]:
    """Batches of workers that are killed and restart somewhere before, combining at random."""
    batches, begin = [], 0
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.integers(begin + 1, MESSAGES))
        batches += split(draw, begin, end)
        begin = draw(st.integers(0, end - 1))
    return batches + split(draw, begin, MESSAGES)


def split(draw: st.DrawFn, begin: int, end: int) -> list[list[int]]:
    edges = sorted(draw(st.sets(st.integers(begin, end))) | {begin, end})
    return [list(range(a, b)) for a, b in itertools.pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(batches=restarts())
def test_any_combination_with_any_replay_gives_the_same_bytes(
    messages, one_by_one, batches
) -> None:
    assert folded([[messages[place] for place in batch] for batch in batches]) == one_by_one


def test_a_zombie_that_combines_the_same_messages_differently_changes_nothing(
    messages, one_by_one
) -> None:
    ours = [messages[:5], messages[5:9], messages[9:]]
    zombies = [messages[:3], messages[3:7], messages[7:8]]
    batches = [batch for pair in zip(zombies, ours, strict=True) for batch in pair]
    assert folded(batches) == one_by_one


@pytest.mark.parametrize("seed", range(8))
def test_several_partitions_combined_equal_each_alone(event_table, seed) -> None:
    """Users of one partition each, and items of both: rows of two partitions."""
    rng = np.random.default_rng(seed)
    queues: list[list[Delivery]] = [[], []]
    for number in range(10):
        partition = int(rng.integers(2))
        events = [
            {"event_id": f"{number}/{row}", "kind": "like", "user_id": f"{partition}{row % 2}",
             "video_id": f"v{row % 2}", "author_id": "a", "query": None,
             "event_time_ms": 1_700_000_000_000 + int(rng.integers(DAY_MS))}
            for row in range(rng.integers(5))
        ]  # fmt: skip
        place = Stamp("e", partition, number)
        queues[partition].append(Delivery(EVENTS_BY_USER, place, event_table(events)))
    separate = folded([[message] for queue in queues for message in queue])
    batches, begins = [], [0, 0]
    while any(begin < len(queue) for begin, queue in zip(begins, queues, strict=True)):
        ends = [
            int(rng.integers(b, len(queue) + 1)) for b, queue in zip(begins, queues, strict=True)
        ]
        if batch := [
            m for b, e, queue in zip(begins, ends, queues, strict=True) for m in queue[b:e]
        ]:
            batches.append(batch)
        begins = ends
    again = [batch for batch in batches for batch in (batch, batch)]  # a retry changes nothing
    together = folded(again)
    assert together["user"] == separate["user"]
    assert finalized(together) == finalized(separate)


def finalized(rows: dict[str, dict[str, bytes]]) -> dict[str, dict[str, list[object]]]:
    """What readers see; the order of a row's stored offsets may differ."""
    found = {}
    for entity, definition in DEFINITIONS.items():
        ids = sorted(rows[entity])
        frame = finalize_rows(
            definition, ids, [rows[entity][i] for i in ids], 1_700_000_000_000 + DAY_MS
        )
        found[entity] = {name: column.tolist() for name, column in frame.columns.items()}
    return found


def test_a_single_message_is_passed_on_unchanged(messages) -> None:
    assert combine(messages[4:5]) is messages[4]


def test_a_combined_delivery_keeps_each_row_s_message_and_trace(event_table) -> None:
    def message(offset: int, rows: int, traced: dict[int, str]) -> Delivery:
        ids = [f"{offset}/{row}" for row in range(rows)]
        events = [{"event_id": i, "kind": "like", "event_time_ms": 1} for i in ids]
        return Delivery("t", Stamp("e", 1, offset), event_table(events), pack_traceparents(traced))

    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    one = combine([message(3, 2, {1: trace}), message(5, 1, {}), message(6, 3, {2: trace})])
    assert one.stamp == Stamp("e", 1, 6)
    assert one.table[MESSAGE_OFFSET].to_pylist() == [3, 3, 5, 6, 6, 6]
    assert one.table["event_id"].to_pylist() == ["3/0", "3/1", "5/0", "6/0", "6/1", "6/2"]
    assert unpack_traceparents(one.headers) == {1: trace, 5: trace}
    assert pa.types.is_int64(one.table[MESSAGE_OFFSET].type)
    assert MESSAGE_PARTITION not in one.table.column_names
    two = combine([*one.parts, Delivery("t", Stamp("e", 0, 9), one.parts[1].table)])
    assert two.table[MESSAGE_PARTITION].to_pylist() == [1, 1, 1, 1, 1, 1, 0]
    assert two.table[MESSAGE_OFFSET].to_pylist() == [3, 3, 5, 6, 6, 6, 9]
