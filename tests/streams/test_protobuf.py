"""Protobuf messages decode to the same rows as JSON, and any bytes to a row or a rejection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.bus.polled import Record
from streams.codec import decode, protobuf
from streams.codec.content_type import CONTENT_TYPE, JSON, PROTOBUF, decode_records
from streams.contract.declaration import Contract, declared
from streams.contract.events import KINDS
from streams.contract.protobuf_schema import V1, V2, encode_protobuf_event
from streams.contract.signals import Signal, Signals

T = 1_750_000_000_000
GOOD = {"event_id": "e", "user_id": "u", "kind": "play", "event_time_ms": T, "video_id": "v"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_are_a_row_or_a_rejection_and_affect_no_neighbour(garbage: list[bytes]) -> None:
    good = encode_protobuf_event(GOOD)
    got = protobuf.decode_protobuf([m for bad in garbage for m in (good, bad)])
    assert set(range(0, 2 * len(garbage), 2)) <= set(got.rows.tolist())
    assert len(got.rows) + len(got.rejected) == 2 * len(garbage)


def _events(count: int) -> list[dict[str, Any]]:
    return [
        {**GOOD, "event_id": f"e{i}", "kind": KINDS[i % 12], "query": "q", "dwell_ms": i}
        for i in range(count)
    ]


def test_an_event_is_the_same_row_in_both_formats() -> None:
    events = _events(9_000)
    as_json = decode.decode_json([orjson.dumps(event) for event in events])
    as_protobuf = protobuf.decode_protobuf([encode_protobuf_event(event) for event in events])
    assert as_protobuf.rows.tolist() == list(range(9_000))
    assert as_protobuf.table.equals(as_json.table)


def _sent(values: Sequence[bytes], types: Sequence[bytes | None]) -> list[Record]:
    return [
        Record("behaviour", 0, i, None, value, ((CONTENT_TYPE, kind),) if kind else (("h", b""),))
        for i, (value, kind) in enumerate(zip(values, types, strict=True))
    ]


def test_each_message_is_decoded_as_its_header_states() -> None:
    text, binary = orjson.dumps(GOOD), encode_protobuf_event(GOOD)
    sent = {
        PROTOBUF: binary,
        b"application/x-protobuf;V=1": binary,
        b"application/protobuf": binary,
        JSON: text,
        b"application/vnd.acme+json; charset=utf-8": text,
        b"": text,
        None: text,
    }
    got = decode_records(_sent(list(sent.values()), list(sent)))
    assert got.rows.tolist() == list(range(len(sent)))
    wrong = {
        PROTOBUF: (text, "not_protobuf"),
        JSON: (binary, "undecodable"),
        b"application/x-protobuf; v=2": (binary, "missing_field"),  # version 2 states kinds by name
        b"application/x-protobuf; v=3": (binary, "unknown_format"),
        b"text/csv": (b"a,b", "unknown_format"),
        b"\xff;;=": (text, "unknown_format"),
    }
    got = decode_records(_sent([value for value, _ in wrong.values()], list(wrong)))
    assert {r.row: r.cause for r in got.rejected} == dict(enumerate(c for _, c in wrong.values()))


@pytest.mark.parametrize("value", [None, b"", b"x" * 65_537])
def test_a_message_without_an_event_is_rejected_with_its_cause(value: bytes | None) -> None:
    (rejection,) = protobuf.decode_protobuf([value]).rejected
    assert rejection.cause in ("null_value", "missing_field", "too_large")


def test_a_kind_outside_the_contract_cannot_be_encoded() -> None:
    with pytest.raises(ValueError):
        encode_protobuf_event({**GOOD, "kind": "wink"})


def test_version_2_carries_what_version_1_does_and_declared_signals_too() -> None:
    events = _events(24)
    first, second = (
        protobuf.decode_protobuf([encode_protobuf_event(e, v) for e in events], version=v)
        for v in (V1, V2)
    )
    assert second.table.equals(first.table)
    rating = {**GOOD, "kind": "rating", "value": 4.5, "text": "grand", "surface": "checkout"}
    message = encode_protobuf_event(rating, V2)
    records = _sent([message], [b"application/x-protobuf; v=2"])
    assert [each.cause for each in decode_records(records).rejected] == ["unknown_kind"]
    signals = Signals((Signal("rating", 64, "engagement", ("value", "text"), 1_000),))
    with declared(Contract(signals=signals)):
        (row,) = decode_records(records).table.to_pylist()
    assert (row["kind"], row["value"], row["text"]) == (64, 4.5, "grand")
    assert (row["video_id"], row["surface"]) == ("v", "checkout")
