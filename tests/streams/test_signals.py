"""Signals that an owner declares: admitted, stored under a number for good, and read by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.bus.polled import Record
from streams.codec.batches import NewerWriterError, read_batch
from streams.codec.decode import Rejection, decode_json, validate_json_event
from streams.codec.json import scan_events
from streams.contract.declaration import Contract, declared
from streams.contract.events import KIND_CODE, KINDS
from streams.contract.schema import (
    DECODED_SCHEMA,
    EVENT_SCHEMA,
    decoded_schema,
    event_schema,
    from_ipc,
    to_ipc,
)
from streams.contract.signals import FIRST_NUMBER, SHIPPED, Signal, SignalDeclaration, Signals
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER
from streams.event_log import EventLog
from streams.ingest.admission import AdmissionLimits, admit
from streams.storage.signal_register import SignalConflict, register

T0 = 1_700_000_000_000
RATING = Signal("rating", 64, "engagement", ("value",), 3_600_000)
NOTE = Signal("note", 65, "engagement", ("text", "dwell"), 3_600_000)
BOTH = Signals((RATING, NOTE))


@pytest.fixture
def both() -> Iterator[None]:
    with declared(Contract(signals=BOTH)):
        yield


def _event(kind: str, number: int = 0, **own: Any) -> dict[str, Any]:
    event = {"event_id": f"e{number}", "user_id": "u", "kind": kind, "event_time_ms": T0}
    return {**event, "item_id": "v", **own}


def _values(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


@given(
    st.lists(
        st.one_of(
            st.decimals(-(10**9), 10**9, places=3).map(str),
            st.floats(allow_nan=False, allow_infinity=False).map(repr),
            st.from_regex(r"-?[0-9]{1,19}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(deadline=None)
def test_a_scanned_decimal_is_the_float_that_a_full_reader_reads(stated: list[str]) -> None:
    event = _values(_event("rating", value=0))[0]
    values = [event.replace(b'"value": 0', b'"value": ' + each.encode()) for each in stated]
    with declared(Contract(signals=BOTH)):
        rows, columns = scan_events(values, np.array(list(map(len, values))))
        for row, found in zip(rows.tolist(), columns["value"].to_pylist(), strict=True):
            read = validate_json_event(values[row])
            assert not isinstance(read, Rejection)
            assert np.float64(found).tobytes() == np.float64(read.value).tobytes()


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("stated", ["4.5", "-0.25", "0.0", "12345.67", "3", "-7", "0.000001"])
def test_an_ordinary_decimal_does_not_wait_for_pydantic(stated: str) -> None:
    event = _values(_event("rating", value=0))[0]
    value = event.replace(b'"value": 0', b'"value": ' + stated.encode())
    rows, columns = scan_events([value], np.array([len(value)]))
    assert (rows.tolist(), columns["value"].to_pylist()) == ([0], [float(stated)])


def test_the_shipped_kinds_are_the_first_declarations() -> None:
    assert tuple(signal.name for signal in SHIPPED) == KINDS
    assert [signal.number for signal in SHIPPED] == list(range(len(KINDS)))
    assert {kind: number for number, kind in enumerate(KINDS)} == KIND_CODE


def test_a_stack_without_declarations_has_the_columns_of_before() -> None:
    assert event_schema() is EVENT_SCHEMA
    assert decoded_schema() is DECODED_SCHEMA
    with declared(Contract(signals=Signals((replace(RATING, payload=("amount",)),)))):
        assert event_schema() is EVENT_SCHEMA


@pytest.mark.usefixtures("both")
def test_declared_signals_are_admitted_with_their_payload() -> None:
    found = decode_json(
        _values(
            _event("rating", value=4), _event("rating", value=4.5), _event("rating", value=-1),
            _event("note", text="grand", dwell_ms=7), _event("play", value=3),
        )
    )  # fmt: skip
    assert found.rejected == []
    assert found.table.schema == decoded_schema()
    assert found.table["kind"].to_pylist() == [64, 64, 64, 65, KIND_CODE["play"]]
    assert found.table["value"].to_pylist() == [4.0, 4.5, -1.0, None, None]
    assert found.table["text"].to_pylist() == [None, None, None, "grand", None]
    assert found.table["dwell_ms"].to_pylist() == [None, None, None, 7, 0]


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (_event("rating"), "missing_field"),
        (_event("rating", value="4"), "wrong_type"),
        (_event("rating", value=True), "wrong_type"),
        (_event("rating", value=float("nan")), "out_of_bounds"),
        (_event("rating", value=10**400), "wrong_type"),
        (_event("note", text="x" * 8_193), "out_of_bounds"),
        (_event("note", dwell_ms=-1), "out_of_bounds"),
        (_event("bookmark"), "unknown_kind"),
        ({k: v for k, v in _event("note").items() if k != "item_id"}, "missing_field"),
    ],
)
def test_a_wrong_signal_is_a_dead_letter_and_the_others_pass(
    event: dict[str, Any], cause: str
) -> None:
    values = _values(_event("rating", value=1), event, _event("note", text="x"))
    records = [Record(BEHAVIOUR, 0, at, None, value, ()) for at, value in enumerate(values)]
    found = admit(records, T0, AdmissionLimits())
    assert found.rows.tolist() == [0, 2]
    assert [(each.row, each.cause) for each in found.refused] == [(1, cause)]
    assert found.table.schema == event_schema()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"kind": st.sampled_from(["rating", "note", "play", "view"])},
            optional={
                "value": st.sampled_from([0, 1, 7.5, -3, 2**53 + 1, "1", None, True]),
                "text": st.sampled_from(["", "a", "é" * 4_096, "x" * 8_192, 5, None]),
                "dwell_ms": st.sampled_from([0, 5, -1, 10**12, None]),
                "item_id": st.sampled_from(["a", "", None]),
                "video_id": st.sampled_from(["a", "b"]),
            },
        ),
        max_size=12,
    )
)
def test_the_scan_takes_only_what_validation_takes_and_as_it_does(
    stated: list[dict[str, Any]],
) -> None:
    values = _values(*({**_event("x"), **own} for own in stated))
    with declared(Contract(signals=BOTH)):
        rows, columns = scan_events(values, np.array([len(v) for v in values], np.int64))
        for place, row in enumerate(rows.tolist()):
            verdict = validate_json_event(values[row])
            assert not isinstance(verdict, tuple)
            named = verdict.model_dump() | {"kind": BOTH.number[verdict.kind]}
            for name in decoded_schema().names:
                assert columns[name][place].as_py() == named.get(name), name


def _table(number: int, offset: int, schema: pa.Schema) -> pa.Table:
    row = dict.fromkeys(schema.names) | {
        "event_id": f"e{offset}", "user_id": "u", "kind": number, "event_time_ms": T0 + offset,
        "ingested_at_ms": T0, "surface": "feed", "origin": "live", "video_id": "v", "value": 4.5,
        "late": False, "duplicate": False, "source_partition": 0, "source_offset": offset,
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=schema)


def _append(folder: Path, number: int, offset: int) -> None:
    log = EventLog(folder)
    log.append(
        Delivery(EVENTS_BY_USER, Stamp("t", 0, offset), _table(number, offset, event_schema()))
    )
    log.flush()


def test_the_log_reads_rows_of_every_declaration_that_there_was(tmp_path: Path) -> None:
    _append(tmp_path, KIND_CODE["play"], 0)
    with declared(Contract(signals=register(tmp_path, {"rating": _declared("value")}))):
        _append(tmp_path, 64, 1)
        kept = EventLog(tmp_path).read()
        assert kept["value"].to_list() == [None, 4.5]
        assert EventLog(tmp_path).read(kinds=["rating"])["event_id"].to_list() == ["e1"]
    # Renamed: old rows keep the name and the column that they were written with.
    later = register(tmp_path, {"stars": _declared("value")})
    assert later.number["stars"] == 65
    with declared(Contract(signals=later)):
        _append(tmp_path, 65, 2)
        found = EventLog(tmp_path).read()
        assert found["kind"].to_list() == ["play", "rating", "stars"]
        assert found["value"].to_list() == [None, 4.5, 4.5]
    assert EventLog(tmp_path).read()["kind"].to_list() == ["play", "signal_64", "signal_65"]


@pytest.mark.usefixtures("both")
def test_a_batch_of_a_signal_that_is_not_known_stops_its_reader() -> None:
    known = to_ipc(_table(64, 0, event_schema()).to_batches()[0])
    assert read_batch(Record(EVENTS_BY_USER, 0, 0, None, known, ())) is not None
    with declared(Contract(signals=Signals((), (RATING,)))):
        assert from_ipc(known)["value"].to_pylist() == [4.5]
    with (
        declared(Contract()),
        pytest.raises(NewerWriterError, match="settings that declare the signal"),
    ):
        read_batch(Record(EVENTS_BY_USER, 0, 0, None, known, ()))


def _declared(*payload: str, number: int | None = None) -> SignalDeclaration:
    return SignalDeclaration.model_validate(
        {"role": "engagement", "payload": payload, "number": number}
    )


def test_numbers_are_kept_however_declarations_move(tmp_path: Path) -> None:
    one, two, three = _declared(), _declared("value"), _declared("text")
    first = register(tmp_path, {"a": one, "b": two})
    assert first.number["a"] == FIRST_NUMBER
    assert register(tmp_path, {"b": two, "a": one}) == first
    without = register(tmp_path, {"b": two})
    assert [each.name for each in without.removed] == ["a"]
    moved = register(tmp_path, {"c": three, "b": two})
    assert (moved.number["a"], moved.number["b"], moved.number["c"]) == (64, 65, 66)
    assert moved.added_columns == ("value", "text")
    assert register(tmp_path, {}).added_columns == ("value", "text")
    assert register(tmp_path, {"a": one, "c": three, "b": two}).number["a"] == 64


def test_a_number_belongs_to_one_name_for_good(tmp_path: Path) -> None:
    register(tmp_path, {"a": _declared(number=70)})
    with pytest.raises(SignalConflict, match=r"belongs to 'a' for good"):
        register(tmp_path, {"b": _declared(number=70)})
    with pytest.raises(SignalConflict, match=r"hold it as 70"):
        register(tmp_path, {"a": _declared(number=71)})
    assert register(tmp_path, {"a": _declared(), "b": _declared()}).number["b"] == 71


def test_nothing_is_written_without_a_declaration(tmp_path: Path) -> None:
    assert register(tmp_path / "log", {}) == Signals()
    assert not (tmp_path / "log").exists()


def test_a_broken_register_is_named(tmp_path: Path) -> None:
    (tmp_path / "signals.json").write_text("{")
    with pytest.raises(SignalConflict, match="cannot be read"):
        register(tmp_path, {"a": _declared()})
