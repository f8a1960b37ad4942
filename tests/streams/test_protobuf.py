"""The walk over Protobuf's columns agrees with the protobuf library on every message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.bus.contract import Record
from streams.codec import decode, protobuf
from streams.codec.content_type import CONTENT_TYPE, JSON, PROTOBUF, decode_records
from streams.codec.decode import DECODED_SCHEMA, Decoded
from streams.contract.events import KIND_CODE, KINDS
from streams.contract.protobuf_schema import EventMessage, message_of

T = 1_750_000_000_000
GOOD = {"event_id": "e", "user_id": "u", "kind": "play", "event_time_ms": T, "video_id": "v"}
_TEXT = st.one_of(st.text(max_size=6), st.sampled_from(["x" * 129, "ü" * 100, "a\x00b"]))
_NUMBER = st.sampled_from([0, 1, -1, 127, 128, 2**31, 2**63 - 1, T, T // 1000, T * 1000])
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["event_id", "user_id", "video_id", "author_id", "query"], _TEXT),
    **dict.fromkeys(["request_id", "impression"], _TEXT),
    **dict.fromkeys(["event_time_ms", "dwell_ms", "amount_cents"], _NUMBER),
    **dict.fromkeys(["kind", "surface", "origin", "provenance"], st.integers(-1, 14)),
}


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def _field(number: int, wire: int, body: bytes) -> bytes:
    return _varint(number << 3 | wire) + body


# What no client library writes, but the wire can hold: unknown fields of each wire type, known
# numbers under another type, repeated ones, long forms of short numbers, what is cut or void.
_ODD = [
    _field(15, 2, b"\x03abc"),
    _field(16, 0, b"\x05"),
    _field(3000, 1, b"12345678"),
    _field(17, 5, b"1234"),
    _field(18, 3, _field(1, 0, b"\x01") + _field(18, 4, b"")),
    _field(18, 3, b""),
    _field(18, 4, b""),
    _field(2**28, 0, b"\x01"),
    _field(0, 0, b"\x01"),
    _field(1, 0, b"\x01"),
    _field(4, 2, b"\x01a"),
    _field(1, 2, b"\x01z"),
    _field(1, 2, b"\x02\xff\xfe"),
    _field(12, 2, b"\x01\xff"),
    _field(9, 2, b"\x81\x00w"),
    _field(9, 2, b"\x81\x80\x80\x80\x80\x00w"),
    _field(9, 2, b"\xff\xff\xff\xff\x07w"),
    _field(9, 2, b"\xff" * 9 + b"\x01"),
    _field(13, 0, b"\x81" * 9 + b"\x01"),
    _field(13, 0, b"\xff" * 11),
    _field(13, 0, b""),
    _field(3, 0, _varint(2**32 + 3)),
    _field(3, 0, b"\x83\x80\x00"),
    b"\xa0\x80\x80\x80\x80\x80\x00\x01",
    b"\x80",
    b"{}",
    b"\x00",
]


@st.composite
def _messages(draw: st.DrawFn) -> bytes:
    message = EventMessage.FromString(message_of(GOOD))
    for name in draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=4)):
        setattr(message, name, draw(_FIELDS[name]))
    if draw(st.integers(0, 5)) == 0:
        message.ClearField(draw(st.sampled_from(sorted(_FIELDS))))
    raw: bytes = message.SerializeToString()
    for odd in draw(st.lists(st.sampled_from(_ODD), max_size=2)):
        raw = raw + odd if draw(st.booleans()) else odd + raw
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 9)) == 0 else raw


def _alone(value: bytes) -> dict[str, Any] | None:
    verdict = protobuf.judge(value)
    if isinstance(verdict, tuple):
        return None
    stated = verdict.model_dump() | {"kind": KIND_CODE[verdict.kind]}
    return {name: stated.get(name) for name in DECODED_SCHEMA.names}


@settings(max_examples=100, deadline=None)
@given(st.lists(_messages(), max_size=8))
@example([odd + message_of(GOOD) for odd in _ODD])
@example([message_of(GOOD) + odd for odd in _ODD])
@example([message_of(GOOD), *_ODD, message_of(GOOD)])
def test_the_walk_and_the_library_tell_the_same(messages: list[bytes]) -> None:
    got = protobuf.decode(messages)
    assert got.table.schema.equals(DECODED_SCHEMA)
    rows = _by_row(got)
    assert [rows.get(i) for i in range(len(messages))] == [_alone(m) for m in messages]
    assert {r.row for r in got.refused} == set(range(len(messages))) - rows.keys()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_are_a_row_or_a_refusal_and_hurt_no_neighbour(garbage: list[bytes]) -> None:
    good = message_of(GOOD)
    got = protobuf.decode([m for bad in garbage for m in (good, bad)])
    assert set(range(0, 2 * len(garbage), 2)) <= set(got.rows.tolist())
    assert len(got.rows) + len(got.refused) == 2 * len(garbage)


def _by_row(got: Decoded) -> dict[int, dict[str, Any]]:
    return dict(zip(got.rows.tolist(), got.table.to_pylist(), strict=True))


def _events(count: int) -> list[dict[str, Any]]:
    return [
        {**GOOD, "event_id": f"e{i}", "kind": KINDS[i % 12], "query": "q", "dwell_ms": i}
        for i in range(count)
    ]


def test_an_event_is_the_same_row_in_both_formats() -> None:
    events = _events(9_000)
    as_json = decode.decode([orjson.dumps(event) for event in events])
    as_protobuf = protobuf.decode([message_of(event) for event in events])
    assert as_protobuf.rows.tolist() == list(range(9_000))
    assert as_protobuf.table.equals(as_json.table)


def _sent(values: Sequence[bytes], types: Sequence[bytes | None]) -> list[Record]:
    return [
        Record("behaviour", 0, i, None, value, ((CONTENT_TYPE, kind),) if kind else (("h", b""),))
        for i, (value, kind) in enumerate(zip(values, types, strict=True))
    ]


def test_each_message_is_read_as_its_header_says() -> None:
    text, binary = orjson.dumps(GOOD), message_of(GOOD)
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
        b"application/x-protobuf; v=2": (binary, "unknown_format"),
        b"text/csv": (b"a,b", "unknown_format"),
        b"\xff;;=": (text, "unknown_format"),
    }
    got = decode_records(_sent([value for value, _ in wrong.values()], list(wrong)))
    assert {r.row: r.cause for r in got.refused} == dict(enumerate(c for _, c in wrong.values()))


@pytest.mark.parametrize("value", [None, b"", b"x" * 65_537])
def test_a_message_that_holds_no_event_is_refused_with_its_cause(value: bytes | None) -> None:
    (refusal,) = protobuf.decode([value]).refused
    assert refusal.cause in ("null_value", "missing_field", "too_large")


def test_a_kind_outside_the_contract_cannot_be_written() -> None:
    with pytest.raises(ValueError):
        message_of({**GOOD, "kind": "wink"})
