"""Items of any kind, by both versions of the contract, with the attributes that an owner declares."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from streams.bus.contract import Outgoing
from streams.bus.memory import MemoryBus
from streams.bus.polled import Record
from streams.catalogue import (
    Catalogue,
    CatalogueLog,
    consume_catalogue,
    items_frame,
    parse_catalogue_event,
)
from streams.codec.decode import Rejection
from streams.codec.inputs import RejectedRecord, no_limit
from streams.contract.attributes import MAX_ATTRIBUTES, AttributeDeclaration, AttributeDeclarations
from streams.contract.bounds import declared_name_problem
from streams.contract.declaration import Contract, declared
from streams.contract.items import OWN_NAMES, CatalogueItem
from streams.contract.topics import CATALOGUE, TopicSpec

T0 = 1_700_000_000_000
DECLARED = {
    "colour": AttributeDeclaration(type="label"),
    "weight_kg": AttributeDeclaration(type="number"),
    "story": AttributeDeclaration(type="text"),
    "sizes": AttributeDeclaration(type="labels"),
    "gift": AttributeDeclaration(type="flag"),
    "look": AttributeDeclaration(type="vector", length=3),
}
GOOD = {
    "colour": "red", "weight_kg": 2, "story": "once", "sizes": ["s", "m"], "gift": True,
    "look": [1, 0.5, 0],
}  # fmt: skip


def _message(item: dict[str, Any], number: int = 0, kind: str = "item_added") -> bytes:
    body = {"kind": kind, "event_id": f"e{number}", "event_time_ms": T0}
    return json.dumps({**body, "item": {"item_id": "p1", "title": "Shoe", **item}}).encode()


def _read(item: dict[str, Any], undeclared: Any = "keep") -> CatalogueItem | Rejection:
    with declared(Contract(items=AttributeDeclarations(DECLARED, undeclared))):
        found = parse_catalogue_event(Record(CATALOGUE, 0, 0, None, _message(item), ()), no_limit())
    return found if isinstance(found, Rejection) else found.item  # type: ignore[union-attr]


VERSION_1 = (
    b'{"kind":"item_added","event_id":"v1@1","event_time_ms":1700000000001,"item":{"video_id":"v1",'
    b'"title":"Kolya (1996)","genres":["Comedy"],"author_id":"a1","duration_ms":6300000,'
    b'"price_cents":0,"provenance":"human","created_ms":0}}\n'
    b'{"kind":"item_taken_down","event_id":"v1-2","event_time_ms":1700000000002,"video_id":"v1"}\n'
)
"""Lines that version 1 wrote. Never regenerate them."""


def test_the_lines_of_version_1_are_read_and_continued(tmp_path: Path) -> None:
    log = CatalogueLog(tmp_path)
    log.path.write_bytes(VERSION_1)
    catalogue = log.load()
    item = catalogue.get("v1")
    assert item is not None
    assert (item.item_id, item.video_id) == ("v1", "v1")
    assert item.categories == item.genres == ("Comedy",)
    assert item.kind == "video"
    assert not catalogue.available("v1")
    assert log.append(log.events()) == 0
    again = CatalogueLog(tmp_path / "copy")
    again.append(log.events())
    assert list(again.events()) == list(log.events())
    assert b'"item_id":"v1"' in again.path.read_bytes()


def test_an_item_of_any_kind_keeps_every_field_and_attribute() -> None:
    fields = {
        "kind": "product", "text": "A light shoe", "categories": ["Shoes"], "brand": "Acme",
        "seller_id": "s1", "price_cents": 4_900, "currency": "EUR", "availability": "preorder",
        "locale": "pt-BR", "group_id": "g1", "created_ms": T0,
    }  # fmt: skip
    item = _read({**fields, "attributes": GOOD})
    assert isinstance(item, CatalogueItem)
    assert item.model_dump(include=set(fields)) == {**fields, "categories": ("Shoes",)}
    assert item.attributes == {**GOOD, "sizes": ("s", "m"), "look": (1.0, 0.5, 0.0)}
    with declared(Contract(items=AttributeDeclarations(DECLARED))):
        frame = items_frame([(item, True)])
    assert frame["attributes"].struct.unnest().to_dicts() == [
        {**GOOD, "weight_kg": 2.0, "look": [1.0, 0.5, 0.0]}
    ]
    assert frame["attributes"].struct.field("look").dtype == pl.Array(pl.Float32, 3)
    assert frame["brand"].to_list() == ["Acme"]


def test_an_item_out_of_stock_is_not_shown() -> None:
    catalogue = Catalogue()
    for number, state in enumerate(("in_stock", "out_of_stock", "in_stock")):
        message = _message({"availability": state}, number)
        event = parse_catalogue_event(Record(CATALOGUE, 0, 0, None, message, ()), no_limit())
        assert not isinstance(event, Rejection)
        catalogue.apply(event)
        assert catalogue.available("p1") == (state == "in_stock")


WRONG: dict[str, tuple[Any, str, str]] = {
    "a text for a number": ({"weight_kg": "2"}, "wrong_type", "weight_kg"),
    "a flag for a number": ({"weight_kg": True}, "wrong_type", "weight_kg"),
    "a number for a flag": ({"gift": 1}, "wrong_type", "gift"),
    "a list for a label": ({"colour": ["red"]}, "wrong_type", "colour"),
    "an empty label": ({"colour": ""}, "wrong_type", "colour"),
    "a vector that is too short": ({"look": [1, 2]}, "wrong_type", "has 2"),
    "a vector with NaN": ({"look": [1, 2, float("nan")]}, "out_of_bounds", "NaN"),
    "an infinite number": ({"weight_kg": float("inf")}, "out_of_bounds", "NaN"),
    "a number beyond float64": ({"weight_kg": 10**400}, "out_of_bounds", "NaN"),
    "a mixed list": ({"sizes": ["s", 1]}, "wrong_type", "only"),
    "an object": ({"colour": {"name": "red"}}, "wrong_type", "attribute is"),
    "a nested list": ({"look": [[1], [2], [3]]}, "wrong_type", "only"),
    "10,000 attributes": ({f"a{n}": n for n in range(10_000)}, "out_of_bounds", "10000"),
    "no object": ([1], "not_an_object", "object"),
    "a braced name": ({"{x}": {}}, "wrong_type", "attribute is"),
}


@pytest.mark.parametrize(("attributes", "cause", "named"), WRONG.values(), ids=list(WRONG))
def test_an_attribute_that_does_not_fit_is_refused_by_name(
    attributes: Any, cause: str, named: str
) -> None:
    found = _read({"attributes": attributes})
    assert isinstance(found, Rejection)
    assert found.cause == cause
    assert named in found.detail


def test_an_undeclared_attribute_is_kept_marked_or_refused_as_declared() -> None:
    item = {"attributes": {"colour": "red", "season": "winter", "none": None}}
    kept, marked, refused = _read(item), _read(item, "mark"), _read(item, "reject")
    assert isinstance(kept, CatalogueItem)
    assert isinstance(marked, CatalogueItem)
    assert kept.attributes == marked.attributes == {"colour": "red", "season": "winter"}
    assert (kept.undeclared, marked.undeclared) == ((), ("season",))
    assert isinstance(refused, Rejection)
    assert refused == ("undeclared_attribute", "attributes: 'season' is not declared")


def test_refused_items_become_dead_letters_and_the_others_are_kept(tmp_path: Path) -> None:
    bad = [value for value, *_ in WRONG.values()]
    values = [_message({"item_id": f"bad{n}", "attributes": a}, n) for n, a in enumerate(bad)]
    good = [_message({"item_id": f"good{n}", "attributes": GOOD}, n) for n in range(len(bad))]
    bus, log, stop = MemoryBus(), CatalogueLog(tmp_path), threading.Event()
    bus.ensure_topics([TopicSpec(CATALOGUE, 1)])
    mixed = [each for pair in zip(values, good, strict=True) for each in pair]
    bus.producer().send([Outgoing(CATALOGUE, value) for value in mixed])
    dead: list[bytes | None] = []

    def collect(rejected: Sequence[RejectedRecord]) -> None:
        dead.extend(each.record.value for each in rejected)
        stop.set()

    with declared(Contract(items=AttributeDeclarations(DECLARED))):
        consume_catalogue(bus, log.append, stop, group="g", on_rejected=collect)
    assert dead == values
    assert log.load().available_ids() == sorted(f"good{n}" for n in range(len(bad)))


def test_a_declaration_that_contradicts_stored_items_hides_values_and_names_them() -> None:
    catalogue = Catalogue()
    for number, value in enumerate((1, "heavy", "light")):
        message = _message({"item_id": f"p{number}", "attributes": {"weight_kg": value}}, number)
        event = parse_catalogue_event(Record(CATALOGUE, 0, 0, None, message, ()), no_limit())
        assert not isinstance(event, Rejection)
        catalogue.apply(event)
    later = AttributeDeclarations(DECLARED)
    with declared(Contract(items=later)):
        frame = catalogue.to_frame()
    assert frame["attributes"].struct.field("weight_kg").to_list() == [1.0, None, None]
    count, example = catalogue.contradictions(later)["weight_kg"]
    assert count == 2
    assert example.startswith("p1: it is declared number")


def test_two_names_of_one_field_must_agree() -> None:
    assert isinstance(_read({"video_id": "p1"}), CatalogueItem)
    refused = _read({"video_id": "p2"})
    assert isinstance(refused, Rejection)
    assert "item_id and video_id" in refused.detail


@pytest.mark.parametrize(
    "name",
    ["select", "event_timestamp", "price_cents", "genres", "video_id", "Colour", "a__b", "a_", "ä",
     "1st", "", "a" * 64, "a b"],
)  # fmt: skip
def test_a_name_that_a_column_cannot_have_is_refused(name: str) -> None:
    assert declared_name_problem(name, OWN_NAMES)
    assert not declared_name_problem(f"x{len(name)}_free", OWN_NAMES)


def test_a_declaration_is_a_type_or_a_table() -> None:
    assert AttributeDeclaration.model_validate("flag").type == "flag"
    for wrong in ("colour", "vector", {"type": "label", "length": 3}, {"type": "text", "max": 1}):
        with pytest.raises(ValidationError):
            AttributeDeclaration.model_validate(wrong)


def test_as_many_attributes_as_the_contract_allows() -> None:
    item = _read({"attributes": {f"a{n}": n for n in range(MAX_ATTRIBUTES)}})
    assert isinstance(item, CatalogueItem)
    assert len(item.attributes) == MAX_ATTRIBUTES
