"""The compiled decoder agrees with pydantic on every message."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.codec.decode import decode_json, validate_json_event
from streams.contract.events import EVENT, KIND_CODE, KINDS
from streams.contract.schema import DECODED_SCHEMA, EVENT_SCHEMA, conform, from_ipc, to_ipc
from streams.contract.topics import partition_of
from streams.ingest.partitioning import partitions_of
from streams.kernels.recent_keys import RecentKeys

T = 1_750_000_000_000
_ANY = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([{}])
)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "event_id": st.text(min_size=1, max_size=140),
    "user_id": st.sampled_from(["u1", "ü" * 100, "x" * 128]),
    "kind": st.sampled_from(KINDS),
    "event_time_ms": st.sampled_from([T, T // 1000, T * 1000, 0]),
    "surface": st.sampled_from(["feed", "queries", "external", "moon"]),
    "origin": st.sampled_from(["live", "simulated"]),
    "request_id": st.text(max_size=4),
    "impression": st.text(max_size=4),
    "video_id": st.text(min_size=1, max_size=4),
    "author_id": st.text(min_size=1, max_size=4),
    "provenance": st.sampled_from(["human", "aigc"]),
    "query": st.sampled_from(["red shoes", "q" * 257, "é" * 200]),
    "dwell_ms": st.sampled_from([0, 5, 86_400_000, 86_400_001, -1]),
    "amount_cents": st.sampled_from([0, 10**9, 10**9 + 1]),
    "future_field": _ANY,
}
_GOOD = {"event_id": "e", "user_id": "u", "kind": "play", "event_time_ms": T, "video_id": "v"}


@st.composite
def _messages(draw: st.DrawFn) -> bytes:
    body: dict[str, Any] = dict(_GOOD)
    for name in draw(st.lists(st.sampled_from(sorted(_VALUES)), max_size=6)):
        body[name] = draw(_VALUES[name])
    if draw(st.integers(0, 3)) == 0:
        body[draw(st.sampled_from(sorted(_VALUES)))] = draw(_ANY)
    if draw(st.integers(0, 5)) == 0:
        body.pop(draw(st.sampled_from(sorted(body))))
    try:
        raw = orjson.dumps(body)
    except (orjson.JSONEncodeError, TypeError):
        raw = b"{}"
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 9)) == 0 else raw


def _expected(value: bytes | None) -> dict[str, Any] | None:
    verdict = validate_json_event(value)
    if isinstance(verdict, tuple):
        return None
    named = verdict.model_dump() | {"kind": KIND_CODE[verdict.kind]}
    return {name: named.get(name) for name in DECODED_SCHEMA.names}


@settings(max_examples=120, deadline=None)
@given(st.lists(_messages(), max_size=12))
def test_the_scan_and_pydantic_agree(messages: list[bytes]) -> None:
    got = decode_json(messages)
    assert got.table.schema.equals(DECODED_SCHEMA)
    rows = dict(zip(got.rows.tolist(), got.table.to_pylist(), strict=True))
    rejected = {each.row for each in got.rejected}
    for row, message in enumerate(messages):
        assert rows.get(row) == _expected(message)
        assert (row in rows) != (row in rejected)
    assert got.rows.tolist() == sorted(got.rows.tolist())


@pytest.mark.parametrize(
    "messages",
    [
        [b'{"a":1}{"b":2}', b"{ }"],
        [b'{"a":[{}', b"{}]}"],
        [orjson.dumps(_GOOD) + orjson.dumps(_GOOD), b"   "],
        [orjson.dumps(_GOOD) + b"\x00", orjson.dumps(_GOOD)],
        [b"\n" + orjson.dumps(_GOOD, option=orjson.OPT_INDENT_2) + b"\n", orjson.dumps(_GOOD)],
        [b'{"event_id":"a","event_id":"b",' + orjson.dumps(_GOOD)[1:]] * 2,
    ],
)
def test_messages_do_not_affect_their_neighbours(messages: list[bytes]) -> None:
    got = decode_json(messages)
    rows = dict(zip(got.rows.tolist(), got.table.to_pylist(), strict=True))
    assert [rows.get(i) for i in range(len(messages))] == [_expected(m) for m in messages]


def test_many_invalid_messages_lose_no_valid_one() -> None:
    good = orjson.dumps(_GOOD)
    broken = [b"{", b'{"kind":1}', good.replace(b'"v"', b"1.5"), good.replace(b"play", b"p")]
    messages = [broken[i // 7 % 4] if i % 7 == 0 else good for i in range(9_000)]
    got = decode_json(messages)
    assert got.rows.tolist() == [i for i in range(9_000) if i % 7]
    assert [r.row for r in got.rejected] == list(range(0, 9_000, 7))


def test_null_is_absent() -> None:
    event = EVENT.validate_python({**_GOOD, "surface": None, "dwell_ms": None})
    assert (event.surface, event.request_id) == ("external", None)


def test_an_unknown_field_is_ignored() -> None:
    assert len(decode_json([orjson.dumps({**_GOOD, "mood": {"x": [1]}})]).rows) == 1


def test_vectorised_partitions_match_the_contract() -> None:
    ids = ["u1", "ü", "x" * 300, "", "用户"]
    assert partitions_of(pa.array(ids), 7).tolist() == [partition_of(i, 7) for i in ids]


def test_a_batch_round_trips_also_with_an_older_or_newer_schema() -> None:
    row = {
        "event_id": "e",
        "user_id": "u",
        "kind": 2,
        "event_time_ms": T,
        "ingested_at_ms": T,
        "surface": "feed",
        "origin": "live",
        "late": False,
        "duplicate": False,
        "source_partition": 0,
        "source_offset": 7,
    }
    table = pa.Table.from_pylist([row], schema=EVENT_SCHEMA)
    assert from_ipc(to_ipc(table.to_batches()[0])).equals(table)
    older = table.drop_columns(["amount_cents"])
    assert from_ipc(to_ipc(older.to_batches()[0])).equals(table)
    newer = table.append_column("mood", pa.array(["glad"]))
    assert conform(newer).equals(table)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=40), max_size=12))
def test_recent_keys_match_a_dictionary(batches: list[list[int]]) -> None:
    memory, seen = RecentKeys(horizon_ms=3), dict[int, int]()
    for now, batch in enumerate(batches):
        expected = []
        for key in (max(k, 1) for k in batch):
            known = key in seen and seen[key] >= now - 3
            expected.append(known)
            seen[key] = seen[key] if known else now
        assert memory.see(np.array(batch, dtype=np.uint64), now).tolist() == expected


def test_recent_keys_grow_and_expire() -> None:
    memory = RecentKeys(horizon_ms=10)
    keys = np.random.default_rng(0).integers(1, 2**63, 50_000, dtype=np.uint64)
    assert not memory.see(keys, 0).any()
    assert memory.see(keys, 10).all()
    assert not memory.see(keys, 11).any()
    assert not memory.see(keys + np.uint64(1), 100).any()
    assert len(memory) < 100_001
