"""However queued messages are combined, and wherever a replay cuts them, the rows are the same."""

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
from features.rows.finalize import finish_blobs
from streams.bus.contract import Stamp
from streams.bus.delivery import MESSAGE_OFFSET, MESSAGE_PARTITION, Delivery, combine
from streams.contract.clock import DAY_MS
from streams.contract.events import KINDS
from streams.contract.topics import EVENTS_BY_USER
from streams.telemetry import pack, unpack

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

    made = []
    for number in range(MESSAGES):
        events = [event(number, row) for row in range(rng.integers(7))]
        made.append(Delivery(EVENTS_BY_USER, Stamp("e", 0, number * GAP), event_table(events)))
    return made


@pytest.fixture(scope="module")
def one_by_one(messages) -> dict[str, dict[str, bytes]]:
    return folded([[message] for message in messages])


def folded(turns: list[list[Delivery]]) -> dict[str, dict[str, bytes]]:
    store = MemoryFeatureStore()
    for entity in DEFINITIONS:
        for turn in turns:
            fold_delivery(store, entity)(combine(turn))
    return store._rows


@st.composite
def lives(draw: st.DrawFn) -> list[list[int]]:
    """Workers that are killed and begin again somewhere before, each combining as it comes."""
    turns, begin = [], 0
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.integers(begin + 1, MESSAGES))
        turns += cut(draw, begin, end)
        begin = draw(st.integers(0, end - 1))
    return turns + cut(draw, begin, MESSAGES)


def cut(draw: st.DrawFn, begin: int, end: int) -> list[list[int]]:
    edges = sorted(draw(st.sets(st.integers(begin, end))) | {begin, end})
    return [list(range(a, b)) for a, b in itertools.pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(turns=lives())
def test_any_combination_with_any_replay_gives_the_same_bytes(messages, one_by_one, turns) -> None:
    assert folded([[messages[place] for place in turn] for turn in turns]) == one_by_one


def test_a_zombie_that_folds_the_same_messages_otherwise_cut_changes_nothing(
    messages, one_by_one
) -> None:
    ours = [messages[:5], messages[5:9], messages[9:]]
    zombies = [messages[:3], messages[3:7], messages[7:8]]
    turns = [turn for pair in zip(zombies, ours, strict=True) for turn in pair]
    assert folded(turns) == one_by_one


@pytest.mark.parametrize("seed", range(8))
def test_several_partitions_at_once_give_what_each_alone_gives(event_table, seed) -> None:
    """Users of one partition each, and videos that both name: rows of two partitions."""
    rng = np.random.default_rng(seed)
    lanes: list[list[Delivery]] = [[], []]
    for number in range(10):
        partition = int(rng.integers(2))
        events = [
            {"event_id": f"{number}/{row}", "kind": "like", "user_id": f"{partition}{row % 2}",
             "video_id": f"v{row % 2}", "author_id": "a", "query": None,
             "event_time_ms": 1_700_000_000_000 + int(rng.integers(DAY_MS))}
            for row in range(rng.integers(5))
        ]  # fmt: skip
        place = Stamp("e", partition, number)
        lanes[partition].append(Delivery(EVENTS_BY_USER, place, event_table(events)))
    apart = folded([[message] for lane in lanes for message in lane])
    turns, begins = [], [0, 0]
    while any(begin < len(lane) for begin, lane in zip(begins, lanes, strict=True)):
        ends = [int(rng.integers(b, len(lane) + 1)) for b, lane in zip(begins, lanes, strict=True)]
        if turn := [m for b, e, lane in zip(begins, ends, lanes, strict=True) for m in lane[b:e]]:
            turns.append(turn)
        begins = ends
    again = [turn for turn in turns for turn in (turn, turn)]  # a retry changes nothing
    together = folded(again)
    assert together["user"] == apart["user"]
    assert finished(together) == finished(apart)


def finished(rows: dict[str, dict[str, bytes]]) -> dict[str, dict[str, list[object]]]:
    """What readers see; the order of a row's lanes may differ."""
    found = {}
    for entity, definition in DEFINITIONS.items():
        ids = sorted(rows[entity])
        frame = finish_blobs(
            definition, ids, [rows[entity][i] for i in ids], 1_700_000_000_000 + DAY_MS
        )
        found[entity] = {name: column.tolist() for name, column in frame.columns.items()}
    return found


def test_a_single_message_is_handed_on_as_it_is(messages) -> None:
    assert combine(messages[4:5]) is messages[4]


def test_a_combined_delivery_knows_each_rows_message_and_trace(event_table) -> None:
    def message(offset: int, rows: int, traced: dict[int, str]) -> Delivery:
        ids = [f"{offset}/{row}" for row in range(rows)]
        events = [{"event_id": i, "kind": "like", "event_time_ms": 1} for i in ids]
        return Delivery("t", Stamp("e", 1, offset), event_table(events), pack(traced))

    trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    one = combine([message(3, 2, {1: trace}), message(5, 1, {}), message(6, 3, {2: trace})])
    assert one.stamp == Stamp("e", 1, 6)
    assert one.table[MESSAGE_OFFSET].to_pylist() == [3, 3, 5, 6, 6, 6]
    assert one.table["event_id"].to_pylist() == ["3/0", "3/1", "5/0", "6/0", "6/1", "6/2"]
    assert unpack(one.headers) == {1: trace, 5: trace}
    assert pa.types.is_int64(one.table[MESSAGE_OFFSET].type)
    assert MESSAGE_PARTITION not in one.table.column_names
    two = combine([*one.parts, Delivery("t", Stamp("e", 0, 9), one.parts[1].table)])
    assert two.table[MESSAGE_PARTITION].to_pylist() == [1, 1, 1, 1, 1, 1, 0]
    assert two.table[MESSAGE_OFFSET].to_pylist() == [3, 3, 5, 6, 6, 6, 9]
