"""The scan takes only what pydantic takes, with the same values, and all that is ordinary."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.codec.decode import decode_json, validate_json_event
from streams.codec.json import scan_events
from streams.contract.events import KIND_CODE, KINDS
from streams.contract.schema import DECODED_SCHEMA
from streams.kernels import json_scan

T = 1_750_000_000_000
_GOOD = {"event_id": "e", "user_id": "u", "kind": "play", "event_time_ms": T, "video_id": "v"}
_FULL = _GOOD | {
    "surface": "feed",
    "origin": "replayed",
    "request_id": "r1",
    "impression": "i" * 1024,
    "author_id": "用户",
    "provenance": "aigc",
    "query": "red shoes",
    "dwell_ms": 86_400_000,
    "amount_cents": 5,
}


def _row(value: bytes) -> dict[str, Any] | None:
    """What pydantic alone makes of the message."""
    verdict = validate_json_event(value)
    if isinstance(verdict, tuple):
        return None
    named = verdict.model_dump() | {"kind": KIND_CODE[verdict.kind]}
    return {name: named.get(name) for name in DECODED_SCHEMA.names}


def _taken(values: list[bytes]) -> dict[int, dict[str, Any]]:
    """What the scan alone makes of the messages."""
    rows, columns = scan_events(values, np.array(list(map(len, values))))
    for column in columns.values():
        column.validate(full=True)
    stated = {name: column.to_pylist() for name, column in columns.items()}
    return {row: {n: stated[n][i] for n in stated} for i, row in enumerate(rows.tolist())}


def _agree(values: list[bytes]) -> bool:
    """Whether scan and decode tell what pydantic tells, which is shown where they do not."""
    for row, found in _taken(values).items():
        assert found == _row(values[row]), values[row]
    got = decode_json(list(values))
    rows = dict(zip(got.rows.tolist(), got.table.to_pylist(), strict=True))
    assert [rows.get(row) for row in range(len(values))] == [_row(value) for value in values]
    return sorted([*rows, *(refusal.row for refusal in got.rejected)]) == list(range(len(values)))


NUMBERS = [
    sign + whole + fraction + exponent
    for sign in ("", "-", "+", " ")
    for whole in ("", "0", "5", "00", "05", str(T), str(2**63), str(2**64 + T), str(2**64 + 7), "9" * 400)
    for fraction in ("", ".", ".0", ".5", ".5.5", "." + "3" * 30)
    for exponent in ("", "e", "E0", "e5", "e+5", "e-5", "e+", "E99", "e400", "e-400")
]  # fmt: skip
_NUMBER = st.sampled_from(NUMBERS)
_ESCAPE = st.sampled_from(
    [r"\"", r"\\", r"\/", r"\b\f\n\r\t", r"\u0000", r"\u0041", r"\u00e9", r"\u7528", r"\uD83D\uDE00",
     r"\ud83d", r"\ude00", r"\ud83d\u0041", r"\ud83dx", r"\u12", r"\x", "\\", "\n", "\x00", "\x7f",
     "é", "用户", "😀"]
)  # fmt: skip
_STRING = st.lists(st.one_of(_ESCAPE, st.text(max_size=4)), max_size=4).map(
    lambda parts: '"' + "".join(parts) + '"'
)
_LONG = st.builds(
    lambda unit, count: '"' + unit * count + '"',
    st.sampled_from(["x", "é", "用", r"\u00e9", r"\n", "😀"]),
    st.sampled_from([42, 43, 64, 65, 128, 129, 256, 257, 1024, 1025]),
)
_SPACE = st.sampled_from([*["", " ", "\n", "\t\r\n"] * 8, "\x0b", "\ufeff"])
_LITERAL = st.sampled_from(["null", "true", "false", "nul", "NaN", "Infinity", "-Infinity", ""])
_ENUM = st.sampled_from(
    [f'"{word}"' for word in (*KINDS, "feed", "external", "live", "human", "aigc", "moon", "")]
)
_SCALAR = st.one_of(_NUMBER, _STRING, _LITERAL, _ENUM, _LONG)


def _list(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda items, gap, close: "[" + gap + f",{gap}".join(items) + close,
        *(st.lists(inner, max_size=3), _SPACE, st.sampled_from(["]", "]", "]", ",]", "}", ""])),
    )


def _object(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(
        lambda items, gap, close: "{" + ",".join(f"{k}{gap}:{gap}{v}" for k, v in items) + close,
        *(st.lists(st.tuples(_STRING, inner), max_size=3), _SPACE),
        st.sampled_from(["}", "}", "}", ",}", "]", ""]),
    )


_ANY = st.recursive(_SCALAR, lambda inner: st.one_of(_list(inner), _object(inner)), max_leaves=6)
_TREE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
_WRITTEN = st.builds(
    json.dumps, _TREE, indent=st.sampled_from([None, 1]), ensure_ascii=st.booleans()
)
_TEXT = st.text(min_size=1, max_size=6)
_FIT: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["kind"], st.sampled_from(KINDS)),
    **dict.fromkeys(["surface"], st.sampled_from(["feed", "reactivation", "moon"])),
    **dict.fromkeys(["origin"], st.sampled_from(["live", "simulated"])),
    **dict.fromkeys(["provenance"], st.sampled_from(["aigc", "human"])),
    **dict.fromkeys(["event_time_ms"], st.sampled_from([T, T + 1, T // 1000])),
    **dict.fromkeys(["dwell_ms", "amount_cents"], st.sampled_from([0, 7, 86_400_001, 10**9 + 1])),
}


def _value(name: str) -> st.SearchStrategy[str]:
    """JSON: mostly what may stand under the name, else anything or what is not even JSON."""
    fit = st.builds(json.dumps, _FIT.get(name, _TEXT), ensure_ascii=st.booleans())
    odd = st.one_of(_WRITTEN, _ANY)
    return st.integers(0, 9).flatmap(lambda draw: fit if draw < 7 else odd)


_NAME = st.one_of(
    st.sampled_from([f'"{name}"' for name in (*DECODED_SCHEMA.names, "event", "user_ids", "")]),
    st.sampled_from([r'"user\u005fid"', '"用户"', "kind", "'kind'"]),
    _STRING,
)


_NEW = st.text("abcdef_", max_size=12).map(lambda name: f'"{name}"')
_EXTRA = st.tuples(_NEW, _WRITTEN) | st.tuples(_NEW, _ANY) | st.tuples(_NAME, _ANY)


@st.composite
def _messages(draw: st.DrawFn) -> bytes:
    """A good event, members of it left out, changed, doubled, in any order and spacing; and
    then perhaps bytes of it flipped, doubled or cut off."""
    base = draw(
        st.sampled_from([_GOOD, _FULL, _FULL | {"kind": "search"}, _GOOD | {"kind": "cart"}])
    )
    members = [(f'"{k}"', orjson.dumps(v).decode()) for k, v in base.items()]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        members.append(draw(_EXTRA))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 5]))):
        place = draw(st.integers(0, len(members) - 1))
        name = members[place][0]
        members[place] = (name, draw(_value(name.strip('"'))))
    if draw(st.booleans()):
        members = draw(st.permutations(members))
    if draw(st.integers(0, 9)) == 0:
        members.pop(draw(st.integers(0, len(members) - 1)))
    gap = draw(_SPACE)
    text = gap + "{" + gap + ",".join(f"{k}{gap}:{gap}{v}{gap}" for k, v in members) + "}" + gap
    return draw(_mutations(text.encode("utf-8", "surrogatepass")))


@st.composite
def _mutations(draw: st.DrawFn, raw: bytes) -> bytes:
    body = bytearray(raw)
    for _ in range(draw(st.sampled_from([0] * 6 + [1, 2]))):
        place = draw(st.integers(0, len(body) - 1))
        how = draw(st.sampled_from(["set", "flip", "drop", "double"]))
        if how == "set":
            body[place] = draw(st.sampled_from(b'{}[],:"\\0 -\x00\x80\xc0\xed\xf4\xff'))
        elif how == "flip":
            body[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "double" or len(body) == 1:
            body.insert(place, body[place])
        else:
            del body[place]
    return bytes(body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 9)) == 0 else body)


@settings(max_examples=500, deadline=None)
@given(st.lists(_messages(), min_size=1, max_size=8))
def test_the_scan_tells_what_pydantic_tells_or_nothing(values: list[bytes]) -> None:
    assert _agree(values)


@pytest.mark.parametrize("body", [_GOOD, _FULL])
def test_no_single_byte_can_be_changed_to_make_the_two_differ(body: dict[str, Any]) -> None:
    raw = json.dumps(body, ensure_ascii=False).replace("i" * 1024, "i").encode()
    for byte in b'{}[],:"\\e0- \x00\x1f\x7f\x80\xc3\xe7\xed\xf0\xff':
        assert _agree([raw[:place] + bytes([byte]) + raw[place + 1 :] for place in range(len(raw))])
    assert _agree([raw[:place] + raw[place + 1 :] for place in range(len(raw))])
    assert _agree([raw[:place] for place in range(len(raw))])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_ESCAPE | st.text(max_size=3), max_size=5).map("".join), min_size=1))
def test_a_text_is_what_pydantic_makes_of_its_escapes(texts: list[str]) -> None:
    good = orjson.dumps(_GOOD)
    assert _agree(
        [good.replace(b'"v"', b'"%b"' % text.encode("utf-8", "surrogatepass")) for text in texts]
    )


@pytest.mark.parametrize("name", ["event_time_ms", "dwell_ms", "amount_cents", "unknown"])
def test_a_number_is_what_pydantic_makes_of_its_form(name: str) -> None:
    rest = orjson.dumps({k: v for k, v in _GOOD.items() if k != name} | {"kind": "play"})[1:]
    assert _agree([f'{{"{name}":{number},'.encode() + rest for number in NUMBERS])


@pytest.mark.parametrize("name", DECODED_SCHEMA.names)
def test_of_two_values_under_one_name_pydantic_chooses(name: str) -> None:
    rest = b",".join(orjson.dumps({k: v})[1:-1] for k, v in _FULL.items() if k != name)
    stated = [orjson.dumps(_FULL[name]), b"null", b"1", b'"x"', b"[]"]
    doubled = [
        b'{"%b":%b,"%b":%b,' % (n, a, n, b) for n in [name.encode()] for a in stated for b in stated
    ]
    assert _agree([start + rest + b"}" for start in doubled])
    assert _agree([start.replace(b",", b"," + rest + b",", 1)[:-1] + b"}" for start in doubled])


def test_every_character_can_be_escaped() -> None:
    """By every 7th, all of Unicode: which is each lead byte with many that follow it."""
    codes = [*range(1, 0x3000), *range(0x3000, 0x110000, 7)]
    texts = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    values = [orjson.dumps(_GOOD).replace(b'"v"', json.dumps(text).encode()) for text in texts]
    rows, columns = scan_events(values, np.array(list(map(len, values))))
    assert columns["video_id"].to_pylist() == [texts[row] for row in rows.tolist()]
    assert len(rows) == len(texts)


def test_every_sequence_of_utf_8_is_told_from_what_only_looks_like_it() -> None:
    first, second = range(0x80, 0x100), (0x22, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    parts = [bytes([a, b, *rest]) for a in first for b in second for rest in _RESTS]
    good = orjson.dumps(_GOOD)
    values = [good.replace(b'"v"', b'"%b"' % part) for part in parts]
    assert _agree(values)
    proper = [row for row, part in enumerate(parts) if _decodes(part) and b'"' not in part]
    assert sorted(_taken(values)) == proper


_RESTS = [(), (0x80,), (0xBF,), (0xC0,), (0x80, 0x80), (0xBF, 0xBF), (0x80, 0x7F), (0x80, 0xC0)]


def _decodes(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True


ORDINARY = {
    "all fields": orjson.dumps(_FULL),
    "indented": json.dumps(_FULL, indent=2).encode() + b"\n",
    "escaped, as Python writes it": json.dumps(_GOOD | {"video_id": '用 é 😀 "\\/\n'}).encode(),
    "nulls": orjson.dumps(_GOOD | {"author_id": None, "dwell_ms": None, "surface": None}),
    "unknown fields": orjson.dumps(
        {"a": {"b": [{}, [], [1, {"c": None}], True, False, -1.5e-7, '"é']}, "n": 0, **_GOOD}
    ),
    "fields that its kind has not": orjson.dumps(
        _GOOD | {"query": "", "amount_cents": 10**12, "kind": "like", "dwell_ms": 10**10}
    ),
    "every other kind": orjson.dumps(_FULL | {"kind": "search"}),
}


@pytest.mark.parametrize("value", ORDINARY.values(), ids=list(ORDINARY))
def test_what_is_ordinary_does_not_wait_for_pydantic(value: bytes) -> None:
    assert _taken([b"{", value, value]) == {1: _row(value), 2: _row(value)}


def test_nesting_without_an_end_is_left_to_pydantic() -> None:
    for depth in (10, 60, 61, 62, 63, 64, 65, 300, 60_000):
        for left, right in (("[", "]"), ('{"a":', "}")):
            inner = left * depth + "1" + right * depth
            assert _agree([b'{"deep":' + inner.encode() + b"," + orjson.dumps(_GOOD)[1:]])


def test_a_poll_that_is_cut_into_parts_keeps_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.codec.decode._CHUNK_BYTES", 300)
    values = [orjson.dumps(_FULL | {"event_id": f"e{i}"}) for i in range(50)]
    values[7] = values[30] = b"{"
    assert _agree(values)


def test_no_poll_makes_ingest_compile_again() -> None:
    """What `python -m deploy.compile` compiled is all that a poll needs."""
    decode_json([orjson.dumps(_FULL)] * 3)
    assert len(json_scan.scan.signatures) == 1
