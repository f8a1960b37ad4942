"""Attributes of users: stated by events of one signal, checked where they enter, logged as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from streams.bus.contract import Stamp
from streams.bus.delivery import Delivery
from streams.bus.polled import Record
from streams.codec.decode import decode_json, validate_json_event
from streams.codec.json import scan_events
from streams.codec.protobuf import decode_protobuf
from streams.contract.attributes import (
    MAX_PROFILE_BYTES,
    AttributeDeclaration,
    AttributeDeclarations,
    AttributeValues,
    attributes_json,
    read_attributes_json,
)
from streams.contract.declaration import Contract, declared
from streams.contract.protobuf_schema import V2, encode_protobuf_event
from streams.contract.schema import EVENT_SCHEMA, event_schema
from streams.contract.signals import FIRST_NUMBER, PROFILE, SHIPPED, SignalDeclaration, Signals
from streams.contract.topics import BEHAVIOUR, EVENTS_BY_USER
from streams.event_log import EventLog
from streams.ingest.admission import AdmissionLimits, admit
from streams.storage.signal_register import SignalConflict, register

T0 = 1_700_000_000_000
DECLARED = {
    "plan": AttributeDeclaration(type="label"),
    "age": AttributeDeclaration(type="number"),
    "likes": AttributeDeclaration(type="labels"),
    "adult": AttributeDeclaration(type="flag"),
    "taste": AttributeDeclaration(type="vector", length=3),
}
GOOD: dict[str, Any] = {
    "plan": "gold", "age": 41, "likes": ["War"], "adult": True, "taste": [1, 0.5, -0.0],
}  # fmt: skip
SIGNALS = Signals((PROFILE,))


def _contract(undeclared: Any = "keep") -> Contract:
    return Contract(users=AttributeDeclarations(DECLARED, undeclared), signals=SIGNALS)


@pytest.fixture
def users() -> Iterator[None]:
    with declared(_contract()):
        yield


def _event(attributes: Any, number: int = 0, **own: Any) -> bytes:
    event = {"event_id": f"e{number}", "user_id": "u", "kind": "profile", "event_time_ms": T0}
    return json.dumps(event | {"attributes": attributes} | own).encode()


def _record(value: bytes, offset: int = 0) -> Record:
    return Record(BEHAVIOUR, 0, offset, None, value, ())


def test_its_number_follows_the_shipped_ones_and_is_below_those_of_owners() -> None:
    assert len(SHIPPED) == PROFILE.number < FIRST_NUMBER


@pytest.mark.usefixtures("users")
def test_attributes_that_fit_are_stored_as_canonical_json() -> None:
    other_order = dict(reversed(GOOD.items())) | {"gone": None}
    found = decode_json([_event(GOOD), _event(other_order, 1), _event({}, 2)])
    assert found.rejected == []
    assert found.table["kind"].to_pylist() == [PROFILE.number] * 3
    assert found.table["video_id"].to_pylist() == [None] * 3
    one, two, none = found.table["text"].to_pylist()
    assert one == two
    assert none == "{}"
    stated = GOOD | {"likes": ("War",), "taste": (1.0, 0.5, -0.0)}
    assert read_attributes_json(one) == stated
    assert attributes_json(read_attributes_json(one)) == one


WRONG: dict[str, tuple[Any, str, str]] = {
    "a number for a label": ({"plan": 7}, "wrong_type", "'plan' does not fit"),
    "a text for a number": ({"age": "old"}, "wrong_type", "'age' does not fit"),
    "a flag for a number": ({"age": True}, "wrong_type", "'age' does not fit"),
    "a label for labels": ({"likes": "War"}, "wrong_type", "'likes' does not fit"),
    "a text for a flag": ({"adult": "yes"}, "wrong_type", "'adult' does not fit"),
    "a short vector": ({"taste": [1, 2]}, "wrong_type", "3 numbers and has 2"),
    "no number in a vector": ({"taste": [1, float("nan"), 2]}, "out_of_bounds", "taste: a number"),
    "an endless number": ({"age": float("inf")}, "out_of_bounds", "age: a number must be finite"),
    "a huge number": ({"age": 10**400}, "out_of_bounds", "age: a number must be finite"),
    "257 attributes": ({f"a{n}": n for n in range(257)}, "out_of_bounds", "257 attributes"),
    "10,000 attributes": ({f"a{n}": n for n in range(10_000)}, "too_large", "bytes"),
    "too many bytes": (
        {f"note{n}": "x" * 8_000 for n in range(5)}, "out_of_bounds", str(MAX_PROFILE_BYTES),
    ),
    "an object": ({"plan": {"name": "gold"}}, "wrong_type", "plan: an attribute is"),
    "NUL": ({"plan": "a\0b"}, "out_of_bounds", "plan: a text"),
    "an empty name": ({"": 1}, "out_of_bounds", "a name has"),
    "a list": ([1], "not_an_object", "attributes: Input should be an object"),
    "a text": ("gold", "not_an_object", "attributes: Input should be an object"),
    "a text with a list": ("[1]", "not_an_object", "attributes: Input should be an object"),
    "nothing": (None, "missing_field", "attributes: Field required"),
}  # fmt: skip


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(("attributes", "cause", "named"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_fit_is_a_dead_letter_by_name_and_the_others_pass(
    attributes: Any, cause: str, named: str
) -> None:
    records = [_record(_event(GOOD)), _record(_event(attributes, 1), 1), _record(_event({}, 2), 2)]
    found = admit(records, T0, AdmissionLimits())
    assert found.rows.tolist() == [0, 2]
    (refused,) = found.refused
    assert (refused.row, refused.cause) == (1, cause)
    assert named in refused.detail
    assert found.table.schema == event_schema()


def test_an_undeclared_attribute_is_kept_marked_or_refused_as_declared() -> None:
    stated = {"plan": "gold", "season": "winter"}
    for policy, marked in (("keep", ()), ("mark", ("season",))):
        with declared(_contract(policy)):
            (text,) = decode_json([_event(stated)]).table["text"].to_pylist()
            assert read_attributes_json(text) == stated
            declarations = AttributeDeclarations(DECLARED, policy)  # type: ignore[arg-type]
            assert declarations.marked(read_attributes_json(text)) == marked
    with declared(_contract("reject")):
        (refused,) = decode_json([_event(stated)]).rejected
        assert refused.cause == "undeclared_attribute"
        assert "'season' is not declared" in refused.detail
        assert decode_json([_event({"plan": "gold"})]).rejected == []


def test_without_a_declaration_the_kind_is_unknown_and_nothing_else_changes() -> None:
    (refused,) = decode_json([_event(GOOD)]).rejected
    assert refused.cause == "unknown_kind"
    assert event_schema() is EVENT_SCHEMA


@pytest.mark.usefixtures("users")
def test_the_scan_leaves_profiles_to_validation_and_takes_the_others() -> None:
    play = {"event_id": "p", "user_id": "u", "kind": "play", "item_id": "v", "event_time_ms": T0}
    values = [_event(GOOD), json.dumps(play).encode(), _event({})]
    rows, columns = scan_events(values, np.array([len(v) for v in values], np.int64))
    assert rows.tolist() == [1]
    assert columns["text"].to_pylist() == [None]


@pytest.mark.usefixtures("users")
def test_protobuf_states_the_attributes_as_json() -> None:
    event = {"event_id": "e", "user_id": "u", "kind": "profile", "event_time_ms": T0}
    good = encode_protobuf_event(event | {"text": json.dumps(GOOD)}, V2)
    bad = encode_protobuf_event(event | {"text": '{"plan": 7}'}, V2)
    broken = encode_protobuf_event(event | {"text": "{"}, V2)
    found = decode_protobuf([good, bad, broken], version=V2)
    assert [each.cause for each in found.rejected] == ["wrong_type", "not_an_object"]
    assert found.table["text"].to_pylist() == [attributes_json(_stored(GOOD))]
    verdict = validate_json_event(_event(None, text=json.dumps(GOOD)))
    assert getattr(verdict, "text", verdict) == found.table["text"][0].as_py()


def _stored(attributes: dict[str, Any]) -> Any:
    verdict = validate_json_event(_event(attributes))
    assert not isinstance(verdict, tuple)
    return verdict.attributes  # type: ignore[union-attr]


def test_the_log_keeps_profiles_when_the_declaration_is_removed(tmp_path: Path) -> None:
    rating = SignalDeclaration(role="engagement", payload=("value",))
    with declared(_contract()):
        admitted = admit([_record(_event(GOOD))], T0, AdmissionLimits())
        log = EventLog(tmp_path)
        log.append(Delivery(EVENTS_BY_USER, Stamp("t", 0, 0), admitted.table))
        log.flush()
    assert register(tmp_path, {}, user_attributes=True) == SIGNALS
    both = register(tmp_path, {"rating": rating}, user_attributes=True)
    assert both.number["rating"] == FIRST_NUMBER
    with declared(Contract(signals=register(tmp_path, {"rating": rating}))):
        (row,) = EventLog(tmp_path).read().to_dicts()
    assert row["kind"] == "profile"
    assert read_attributes_json(row["text"])["plan"] == "gold"


def test_a_signal_of_that_name_in_the_register_is_a_conflict(tmp_path: Path) -> None:
    register(tmp_path, {"profile": SignalDeclaration(role="engagement")})
    with pytest.raises(SignalConflict, match=r"users\.attributes needs that name"):
        register(tmp_path, {}, user_attributes=True)


def test_half_a_surrogate_pair_is_refused() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(AttributeValues)
    for stated in ({"plan": "\ud800"}, {"\ud800": 1}, {"plan": ["\ud800"]}):
        with pytest.raises(ValidationError, match="characters"):
            adapter.validate_python(stated)
